// The page: pictures in, what is recognised drawn on them, answers and compared captions. The models run in a worker.

const $ = (selector) => document.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";
const MAX_CAPTIONS = 20, MIN_PRESENT = 0.5;
const SIDES = ["to the left of", "to the right of", "in front of", "behind"];
const percent = (probability) => `${(100 * probability).toFixed(probability > 0.995 || probability < 0.005 ? 1 : 0)} %`;

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let lastId = 0, picture = null, opened = 0;

function call(method, argument) {
  return new Promise((resolve, reject) => {
    waiting.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, method, argument });
  });
}

const ready = new Promise((resolve, reject) => {
  worker.onmessage = ({ data: { id, result, error, ready, failed } }) => {
    if (ready) resolve();
    else if (failed) reject(new Error(failed));
    else {
      const { resolve, reject } = waiting.get(id);
      waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    }
  };
  worker.onerror = (event) => reject(new Error(event.message || "the models' script did not start"));
});

function say(text, isError = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", isError);
}

function node(tag, attributes = {}, ...children) {
  const made = tag in { image: 1, g: 1, circle: 1, text: 1, title: 1 } ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function fillTable(table, rows) {
  $(`${table} tbody`).replaceChildren(...rows.map(({ cells, best }) =>
    node("tr", best ? { class: "best" } : {}, ...cells.map((cell) => node("td", {}, cell)))));
}

function draw(url, { karts }, ego) {
  const shown = karts.filter((kart) => kart === ego || kart.present > MIN_PRESENT), placed = [];
  const marks = shown.sort((one, other) => other.y - one.y).map((kart) => { // from the bottom up: names move up
    const [x, y] = [75 + 75 * kart.x, 50 + 75 * kart.y], isEgo = kart === ego;
    const name = isEgo ? `${kart.name} (ego)` : kart.name, half = 1.2 * name.length + 1;
    const label = { x: Math.min(150 - half, Math.max(half, x)), y: Math.max(5, y - 7), half };
    while (placed.some((other) => Math.abs(other.x - label.x) < other.half + half && Math.abs(other.y - label.y) < 4.5)) {
      label.y -= 1;
    }
    placed.push(label);
    return node("g", isEgo ? { class: "ego" } : {},
      node("title", {}, `${kart.name}, ${percent(isEgo ? kart.ego : kart.present)}`),
      node("circle", { cx: x, cy: y, r: isEgo ? 6 : 5 }),
      node("text", { x: label.x, y: label.y }, name));
  });
  const image = node("image", { href: url, width: 150, height: 100, preserveAspectRatio: "none" });
  $("#view").replaceChildren(image, node("g", { id: "layer" }, ...marks));
  $("#layer").style.display = $("#marks").checked ? "" : "none";
}

function fiveQuestions() {
  return [
    "What kart is the ego car?",
    "How many karts are there in the scenario?",
    "What track is this?",
    `Where is ${$("#kart").value} relative to the ego car?`,
    `How many karts are ${$("#side").value} the ego car?`,
  ];
}

async function askFive() {
  const questions = fiveQuestions(), start = performance.now(), number = opened;
  const answers = await call("ask", questions);
  if (number !== opened) return; // another picture came meanwhile
  const seconds = (performance.now() - start) / 1000;
  fillTable("#answers", questions.map((question, i) => ({ cells: [question, answers[i].answer, percent(answers[i].probability)] })));
  return seconds;
}

function suggestCaptions(ego, other, { total, track }) {
  return [
    `${ego.name} is the ego car.`, `${other.name} is the ego car.`, `There are ${total.value} karts in the scene.`,
    `The track is ${track.value}.`, `${other.name} is left of the ego car.`,
  ].join("\n");
}

async function open(blob) {
  const number = ++opened;
  try {
    await ready;
    say("Working…");
    const start = performance.now();
    const found = await call("open", blob);
    if (number !== opened) return;
    if (picture) URL.revokeObjectURL(picture);
    picture = URL.createObjectURL(blob);
    const byEgo = [...found.karts].sort((one, other) => other.ego - one.ego), ego = byEgo[0];
    const [likeliest] = found.karts.filter((kart) => kart !== ego).sort((one, other) => other.present - one.present);
    draw(picture, found, ego);
    $("#invite").hidden = true;
    const { total, track } = found;
    $("#recognised").textContent =
      `${total.value} ${total.value === 1 ? "kart" : "karts"} (${percent(total.probability)}), ${track.value} (${percent(track.probability)})`;
    $("#kart").replaceChildren(...found.karts.map(({ name }) => node("option", {}, name)));
    $("#kart").value = likeliest.name;
    $("#captions").value = suggestCaptions(ego, likeliest, found);
    $("#answer").textContent = "";
    fillTable("#compared", []);
    await askFive();
    if (number !== opened) return;
    $("#seconds").textContent = `answered in ${((performance.now() - start) / 1000).toFixed(2)} s`;
    for (const button of document.querySelectorAll("form button")) button.disabled = false;
    say("");
  } catch (error) {
    if (number === opened) say(`This picture cannot be used: ${error.message} Choose a JPEG, PNG or WebP picture.`, true);
  }
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
}

function firstImage(items) {
  return [...(items ?? [])].find((item) => item.type.startsWith("image/"));
}

function listen() {
  const drop = $("#drop"), file = $("#file");
  for (const target of [drop, $("#choose")]) target.addEventListener("click", () => file.click());
  drop.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) open(file.files[0]);
    file.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const dropped = firstImage(event.dataTransfer.files) ?? event.dataTransfer.files[0];
    if (dropped) open(dropped);
  });
  addEventListener("paste", (event) => {
    const pasted = firstImage(event.clipboardData.files);
    if (pasted) open(pasted);
  });
  $("#marks").addEventListener("change", () => {
    if ($("#layer")) $("#layer").style.display = $("#marks").checked ? "" : "none";
  });
  for (const select of ["#kart", "#side"]) $(select).addEventListener("change", () => picture && guarded(askFive));
  $("#asking").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(async () => {
      const question = $("#question").value.trim() || $("#question").placeholder;
      const [{ answer, probability }] = await call("ask", [question]);
      $("#answer").textContent = `${answer || "(no answer)"} (${percent(probability)})`;
    });
  });
  $("#comparing").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(async () => {
      const captions = $("#captions").value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MAX_CAPTIONS);
      if (!captions.length) return;
      const compared = await call("compare", captions);
      const ranked = captions.map((caption, i) => ({ caption, ...compared[i] }));
      ranked.sort((one, other) => other.similarity - one.similarity);
      fillTable("#compared", ranked.map(({ caption, probability }, i) => ({ cells: [caption, percent(probability)], best: i === 0 })));
    });
  });
}

async function showExamples() {
  const { examples } = await (await fetch("config.json")).json();
  $("#examples").replaceChildren(...examples.map((name) => {
    const button = node("button", { type: "button", title: "use this example" }, node("img", { src: name, alt: "example", loading: "lazy" }));
    button.addEventListener("click", async () => open(await (await fetch(name)).blob()));
    return button;
  }));
}

$("#side").replaceChildren(...SIDES.map((side) => node("option", {}, side)));
listen();
ready.then(async () => {
  if (!picture && opened === 0) say("Ready: choose a picture, or one of the examples.");
  await showExamples();
  if (navigator.serviceWorker) {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    $("#offline").textContent = "This page now works offline.";
  }
}).catch((error) => say(`The models cannot be loaded: ${error.message} Reload the page.`, true));

// for tests and the curious: call("ask", questions)
window.tux = { call, ready };
