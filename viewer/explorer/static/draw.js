"use strict";

// Draws a view. `state` and `$` are defined in explore.js.

// Creates an element; text is inserted as text, never parsed as HTML.
function element(name, text, className) {
  const created = document.createElement(name);
  if (text !== undefined) created.textContent = text;
  if (className) created.className = className;
  return created;
}

function svgElement(name, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  return created;
}

function draw() {
  const view = state.view;
  $("picture").classList.toggle("empty", !view);
  drawPosition();
  drawImage();
  drawPairs({});
  $("captions").replaceChildren(...(view ? view.captions : []).map((caption) => element("li", caption)));
  $("questions").replaceChildren(...(view ? view.pairs : []).map((pair) => new Option(pair.question)));
  // the user's own captions stay, those of the last view are replaced
  if ($("texts").value === state.suggested) $("texts").value = state.suggested = view ? view.captions.join("\n") : "";
}

function drawPosition() {
  const total = state.keys.length;
  $("key").textContent = state.view ? `${state.view.key}  (${state.position + 1} of ${total})` : "";
  $("previous").disabled = state.position === 0;
  $("next").disabled = state.position >= total - 1;
}

function drawImage() {
  const view = state.view;
  $("view").replaceChildren();
  if (!view) return;
  const size = { x: 0, y: 0, width: 150, height: 100, preserveAspectRatio: view.track ? "none" : "xMidYMid" };
  const image = svgElement("image", { href: urlOf("images", view.key), ...size });
  image.addEventListener("error", () => showError(new Error(`${view.key}: its image is missing or broken`)));
  $("view").append(image);
  if (!$("boxes").checked) return;
  for (const { role, corners: [x1, y1, x2, y2] } of view.boxes)
    $("view").append(svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: role }));
  drawNames(view.boxes.filter(({ role }) => role === "ego" || role === "kart"));
}

// Draws a name above each box, moved up where it would overlap another.
function drawNames(boxes) {
  const placed = [];
  for (const { role, name, corners: [x1, y1, x2] } of [...boxes].sort((one, other) => other.corners[1] - one.corners[1])) {
    const text = role === "ego" ? `${name} (ego)` : name;
    const half = 1.2 * text.length + 0.5; // roughly half the text's width
    const x = Math.min(Math.max((x1 + x2) / 2, half), 150 - half);
    let y = Math.max(4, y1 - 1.5);
    const overlaps = (other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 4.5;
    while (y > 4 && placed.some(overlaps)) y -= 0.5;
    placed.push({ x, y, half });
    const label = svgElement("text", { x, y, "text-anchor": "middle" });
    label.textContent = text;
    $("view").append(label);
  }
}

function drawPairs(answers) {
  const rows = (state.view ? state.view.pairs : []).map(({ question, answer }) => {
    const row = element("tr");
    row.append(element("td", question), element("td", answer));
    const given = answers[question];
    const correct = given !== undefined && given.trim().toLowerCase() === answer.trim().toLowerCase();
    row.append(element("td", given === undefined ? "" : given || "(empty)", correct ? "correct" : "wrong"));
    return row;
  });
  const head = element("tr");
  head.append(element("th", "question"), element("th", "truth"), element("th", "VLM"));
  $("pairs").replaceChildren(...(rows.length ? [head, ...rows] : []));
}
