"use strict";

// Draws a view with its boxes, zooms it, and reduces pictures before they are uploaded.

const VIEW = { width: 150, height: 100 };
const MAX_UPLOAD = { width: 1200, height: 800 }; // pixels; the server stores no larger ones
const MAX_ZOOM = 12;

function svgElement(name, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  return created;
}

// Draws a picture and, if any, its boxes; `onError` is called if the picture cannot be loaded.
function drawView(svg, url, isFrame, boxes, onError) {
  const size = { x: 0, y: 0, ...VIEW, preserveAspectRatio: isFrame ? "none" : "xMidYMid" };
  const image = svgElement("image", { href: url, ...size });
  image.addEventListener("error", onError);
  svg.replaceChildren(image);
  for (const { role, corners: [x1, y1, x2, y2] } of boxes)
    svg.append(svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: role }));
  drawNames(svg, boxes.filter(({ role }) => role === "ego" || role === "kart"));
}

// Draws a name above each box, moved up where it would overlap another.
function drawNames(svg, boxes) {
  const placed = [];
  for (const { role, name, corners: [x1, y1, x2] } of [...boxes].sort((one, other) => other.corners[1] - one.corners[1])) {
    const text = role === "ego" ? `${name} (ego)` : name;
    const half = 1.2 * text.length + 0.5; // roughly half the text's width
    const x = Math.min(Math.max((x1 + x2) / 2, half), VIEW.width - half);
    let y = Math.max(4, y1 - 1.5);
    const overlaps = (other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 4.5;
    while (y > 4 && placed.some(overlaps)) y -= 0.5;
    placed.push({ x, y, half });
    const label = svgElement("text", { x, y, "text-anchor": "middle" });
    label.textContent = text;
    svg.append(label);
  }
}

// Shows the part of a drawing around (x, y), in pixels of the view, `scale` times enlarged.
function setZoom(svg, scale, x, y) {
  const clamped = Math.min(Math.max(scale, 1), MAX_ZOOM);
  const width = VIEW.width / clamped, height = VIEW.height / clamped;
  const left = Math.min(Math.max(x - width / 2, 0), VIEW.width - width);
  const top = Math.min(Math.max(y - height / 2, 0), VIEW.height - height);
  svg.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
  svg.classList.toggle("zoomed", clamped > 1);
}

// Enlarges a drawing by `factor`; the point (x, y) stays where it is, by default the centre.
function zoomBy(svg, factor, x, y) {
  const box = svg.viewBox.baseVal;
  const center = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  const scale = Math.min(Math.max((VIEW.width / box.width) * factor, 1), MAX_ZOOM);
  const ratio = VIEW.width / box.width / scale; // of the new extent to the old one
  const fixed = { x: x ?? center.x, y: y ?? center.y };
  setZoom(svg, scale, fixed.x + (center.x - fixed.x) * ratio, fixed.y + (center.y - fixed.y) * ratio);
}

// Zooms by double click, by Ctrl and the wheel (also what a touchpad's pinch sends), and moves by dragging. Once
// enlarged, the wheel alone zooms; before, it scrolls the page.
function makeZoomable(svg) {
  const isZoomed = () => svg.classList.contains("zoomed");
  const zoomAt = (event, factor) => {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    zoomBy(svg, factor, x, y);
  };
  svg.addEventListener("dblclick", (event) => zoomAt(event, 2));
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !isZoomed()) return;
    event.preventDefault();
    zoomAt(event, event.deltaY < 0 ? 1.25 : 0.8);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!event.buttons || !isZoomed()) return;
    svg.setPointerCapture(event.pointerId);
    const box = svg.viewBox.baseVal, pixels = svg.clientWidth / box.width;
    const center = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    setZoom(svg, VIEW.width / box.width, center.x - event.movementX / pixels, center.y - event.movementY / pixels);
  });
}

// Decodes a picture file and returns it as PNG, no larger than the server stores it.
async function reduce(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("not a picture that this browser can read; use a JPEG, PNG, WebP, GIF or BMP file");
  }
  const scale = Math.min(1, MAX_UPLOAD.width / bitmap.width, MAX_UPLOAD.height / bitmap.height);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
