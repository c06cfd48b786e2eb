"use strict";

// What the page shows of a view: explore.js has the rest, `state` and `$` among it.

// Text goes into the page as text alone, never as HTML.
function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function svgElement(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function draw() {
  const view = state.view;
  $("picture").classList.toggle("empty", !view);
  drawPlace();
  drawPicture();
  drawPairs({});
  $("captions").replaceChildren(...(view ? view.captions : []).map((caption) => element("li", caption)));
  $("questions").replaceChildren(...(view ? view.pairs : []).map((pair) => new Option(pair.question)));
  // captions of one's own stay, the last view's don't
  if ($("texts").value === state.offered) $("texts").value = state.offered = view ? view.captions.join("\n") : "";
}

function drawPlace() {
  const number = state.keys.length;
  $("key").textContent = state.view ? `${state.view.key}  (${state.place + 1} of ${number})` : "";
  $("previous").disabled = state.place === 0;
  $("next").disabled = state.place >= number - 1;
}

function drawPicture() {
  const view = state.view;
  $("view").replaceChildren();
  if (!view) return;
  const size = { x: 0, y: 0, width: 150, height: 100, preserveAspectRatio: view.track ? "none" : "xMidYMid" };
  const image = svgElement("image", { href: at("images", view.key), ...size });
  image.addEventListener("error", () => complain(new Error(`${view.key}: its picture is missing or broken`)));
  $("view").append(image);
  if (!$("boxes").checked) return;
  for (const { role, box: [x1, y1, x2, y2] } of view.boxes)
    $("view").append(svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: role }));
  drawNames(view.boxes.filter(({ role }) => role === "ego" || role === "kart"));
}

// A name above each box, higher up where other names are in the way.
function drawNames(boxes) {
  const taken = [];
  for (const { role, name, box: [x1, y1, x2] } of [...boxes].sort((one, other) => other.box[1] - one.box[1])) {
    const text = role === "ego" ? `${name} (ego)` : name;
    const half = 1.2 * text.length + 0.5; // about half of the text's width
    const x = Math.min(Math.max((x1 + x2) / 2, half), 150 - half);
    let y = Math.max(4, y1 - 1.5);
    while (y > 4 && taken.some((name) => Math.abs(name.x - x) < name.half + half && Math.abs(name.y - y) < 4.5)) y -= 0.5;
    taken.push({ x, y, half });
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
    const right = given !== undefined && given.trim().toLowerCase() === answer.trim().toLowerCase();
    row.append(element("td", given === undefined ? "" : given || "(nothing)", right ? "right" : "wrong"));
    return row;
  });
  const head = element("tr");
  head.append(element("th", "question"), element("th", "truth"), element("th", "VLM"));
  $("pairs").replaceChildren(...(rows.length ? [head, ...rows] : []));
}
