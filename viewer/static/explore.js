"use strict";

const COLOURS = { ego: "#ff3b30", kart: "#ffd60a", small: "#64d2ff", other: "#ffffff" };
const $ = (id) => document.getElementById(id);
const state = { split: "", keys: [], place: 0, view: null, ready: false, turn: 0 };

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

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("no connection: is the command still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.detail || `error ${response.status}`);
  return content;
}

const post = (path, content) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

const at = (kind, key) => `/api/${kind}/${encodeURIComponent(state.split)}/${encodeURIComponent(key)}`;

// Runs an action; what goes wrong is shown, and goes away when the next one goes well.
async function attempt(action) {
  try {
    await action();
    $("error").hidden = true;
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

function fill(select, counts, all) {
  const chosen = select.value;
  select.replaceChildren(new Option(all, ""));
  for (const [value, count] of Object.entries(counts)) select.append(new Option(`${value} (${count})`, value));
  select.value = value_of(select, chosen);
}

const value_of = (select, wanted) => ([...select.options].some((option) => option.value === wanted) ? wanted : "");

async function list(key) {
  const query = new URLSearchParams({ track: $("track").value, kart: $("kart").value, wrong: $("wrong").checked });
  if ($("number").value !== "") query.set("number", $("number").value);
  const found = await call(`/api/views/${encodeURIComponent(state.split)}?${query}`);
  fill($("track"), found.tracks, "all");
  fill($("kart"), found.karts, "any");
  fill($("number"), found.numbers, "any");
  state.keys = found.keys;
  $("found").textContent = `${found.keys.length} of ${found.of} views`;
  await show(Math.max(0, found.keys.indexOf(key)));
}

async function show(place) {
  const turn = ++state.turn; // a slower answer about an earlier view is dropped
  state.place = Math.min(Math.max(0, place), Math.max(0, state.keys.length - 1));
  const key = state.keys[state.place];
  if (key === undefined) {
    state.view = null;
    draw();
    return;
  }
  const view = await call(at("views", key));
  if (turn !== state.turn) return;
  state.view = view;
  history.replaceState(null, "", `#${state.split}/${key}`);
  $("answer").textContent = "";
  $("compared").replaceChildren();
  draw();
  if (state.ready && view.pairs.length) {
    const { answers } = await call(at("answers", key));
    if (turn === state.turn) drawPairs(answers);
  }
}

function draw() {
  const view = state.view;
  const picture = $("view");
  picture.replaceChildren();
  $("key").textContent = view ? `${view.key}  (${state.place + 1} of ${state.keys.length})` : "no view";
  if (view) {
    const size = { x: 0, y: 0, width: 150, height: 100, preserveAspectRatio: view.track ? "none" : "xMidYMid" };
    picture.append(svgElement("image", { href: at("images", view.key), ...size }));
    if ($("boxes").checked) view.boxes.forEach((box) => drawBox(picture, box));
  }
  drawPairs({});
  $("captions").replaceChildren(...(view ? view.captions : []).map((caption) => element("li", caption)));
  $("questions").replaceChildren(...(view ? view.pairs : []).map((pair) => new Option(pair.question)));
  if (!$("texts").value && view) $("texts").value = view.captions.join("\n");
}

function drawBox(picture, { role, name, box: [x1, y1, x2, y2] }) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  picture.append(svgElement("rect", { ...place, class: role, stroke: COLOURS[role] }));
  if (role === "ego" || role === "kart") {
    const label = svgElement("text", { x: Math.min(x1, 125), y: Math.max(4, y1 - 1.5) });
    label.textContent = role === "ego" ? `${name} (ego)` : name;
    picture.append(label);
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

async function ask() {
  if (!state.view || !$("question").value.trim()) throw new Error("type a question first");
  $("answer").textContent = "…";
  try {
    const asked = { split: state.split, key: state.view.key, question: $("question").value };
    const { answer, probability, truth, seconds } = await post("/api/ask", asked);
    const known = truth === null ? "" : `, truth: ${truth}`;
    const sure = `${(100 * probability).toFixed(0)} % sure`;
    $("answer").textContent = `${answer || "(nothing)"}  (${sure}, ${seconds.toFixed(2)} s${known})`;
  } catch (error) {
    $("answer").textContent = "";
    throw error;
  }
}

async function compare() {
  const texts = $("texts").value.split("\n").map((text) => text.trim()).filter(Boolean);
  if (!state.view || !texts.length) throw new Error("write a caption a line first");
  const { probabilities } = await post("/api/compare", { split: state.split, key: state.view.key, texts });
  const best = Math.max(...probabilities);
  const rows = texts.map((text, i) => ({ text, probability: probabilities[i] }));
  rows.sort((one, other) => other.probability - one.probability);
  $("compared").replaceChildren(
    ...rows.map(({ text, probability }) => {
      const row = element("tr", undefined, probability === best ? "right" : "");
      row.append(element("td", text), element("td", `${(100 * probability).toFixed(1)} %`));
      return row;
    }),
  );
}

async function upload() {
  const [file] = $("file").files;
  if (!file) return;
  $("file").value = "";
  const { split, key } = await call("/api/upload", {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body: file,
  });
  await use(split, key);
}

async function use(split, key) {
  state.split = $("split").value = split;
  for (const id of ["track", "kart", "number"]) $(id).value = "";
  $("wrong").checked = false;
  await list(key);
}

const move = (steps) => attempt(() => show(state.place + steps));

// Looks how far the models and the search for wrong answers are, now and every second.
async function watch() {
  try {
    const status = await call(`/api/status?split=${encodeURIComponent(state.split)}`);
    const ready = status.models.vlm === "ready";
    const lines = Object.entries(status.models).map(([name, is]) => element("span", `${name.toUpperCase()}: ${is}`));
    $("models").replaceChildren(...lines);
    const searching = $("wrong").checked && ready && status.checked < status.views;
    Object.assign($("checking"), { hidden: !searching, max: status.views, value: status.checked });
    if (ready && !state.ready) {
      state.ready = true;
      await attempt(() => show(state.place));
    }
    if ($("wrong").checked && ready) {
      $("found").textContent = `${status.wrong} wrong of ${status.checked} looked at, ${status.views} views`;
      if (!state.keys.length && status.wrong) await attempt(() => list());
      else if (status.wrong) await extend();
    }
  } catch {
    $("models").replaceChildren(element("span", "no connection: is the command still running?"));
  }
  setTimeout(watch, 1000);
}

// More wrong answers were found: they join the list without moving the view that is shown.
async function extend() {
  const query = new URLSearchParams({ track: $("track").value, kart: $("kart").value, wrong: true });
  if ($("number").value !== "") query.set("number", $("number").value);
  const { keys } = await call(`/api/views/${encodeURIComponent(state.split)}?${query}`);
  const place = keys.indexOf(state.keys[state.place]);
  if (place < 0 || keys.length === state.keys.length) return;
  Object.assign(state, { keys, place });
  $("key").textContent = `${state.view.key}  (${place + 1} of ${keys.length})`;
}

function listen() {
  $("split").addEventListener("change", () => attempt(() => use($("split").value)));
  for (const id of ["track", "kart", "number"]) $(id).addEventListener("change", () => attempt(() => list()));
  $("wrong").addEventListener("change", () =>
    attempt(async () => {
      if ($("wrong").checked) {
        try {
          await post("/api/check", { split: state.split });
        } catch (error) {
          $("wrong").checked = false;
          throw error;
        }
      } else {
        await call("/api/check", { method: "DELETE" });
      }
      await list();
    }),
  );
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("boxes").addEventListener("change", () => attempt(() => show(state.place)));
  $("file").addEventListener("change", () => attempt(upload));
  for (const [id, action] of Object.entries({ asking: ask, comparing: compare })) {
    $(id).addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(action);
    });
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input:not([type=checkbox])");
    if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (["ArrowRight", "n"].includes(event.key)) move(1);
    else if (["ArrowLeft", "p"].includes(event.key)) move(-1);
    else if (event.key === "b") $("boxes").click();
  });
}

async function start() {
  const { splits, uploads } = await call("/api/splits");
  $("split").replaceChildren(...[...splits, uploads].map((name) => new Option(name)));
  const [split, key] = decodeURIComponent(location.hash.slice(1)).split("/");
  const known = splits.includes(split);
  await use(known ? split : splits.includes("valid") ? "valid" : splits[0], known ? key : undefined);
}

listen();
attempt(start).then(watch);
