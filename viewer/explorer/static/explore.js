"use strict";

// What the page does; draw.js shows a view.
const $ = (id) => document.getElementById(id);
const FILTERS = ["track", "kart", "number"];
const state = { split: "", keys: [], of: 0, place: 0, view: null, ready: false, turn: 0, offered: "", status: {} };

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

function complain(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

// Runs what the user asked for; what goes wrong is shown, and goes away when the next thing goes well.
async function attempt(action) {
  try {
    await action();
    $("error").hidden = true;
  } catch (error) {
    complain(error);
  }
}

// What is chosen stays in the list, even where nothing has it any more.
function fill(select, counts, all) {
  const chosen = select.value;
  if (chosen && !(chosen in counts)) counts[chosen] = 0;
  select.replaceChildren(new Option(all, ""));
  for (const [value, count] of Object.entries(counts)) select.append(new Option(`${value} (${count})`, value));
  select.value = chosen;
}

function found() {
  const query = new URLSearchParams({ track: $("track").value, kart: $("kart").value, wrong: $("wrong").checked });
  if ($("number").value !== "") query.set("number", $("number").value);
  return call(`/api/views/${encodeURIComponent(state.split)}?${query}`);
}

async function list(key) {
  const { keys, of, tracks, karts, numbers } = await found();
  fill($("track"), tracks, "all");
  fill($("kart"), karts, "any");
  fill($("number"), numbers, "any");
  Object.assign(state, { keys, of });
  tell();
  await show(Math.max(0, keys.indexOf(key)));
}

// How many views there are, and where there is none, why.
function tell() {
  const { keys, of, status } = state;
  const looking = $("wrong").checked && (status.split !== state.split || status.checked < status.views);
  const asked = status.split === state.split ? `, ${status.checked} asked` : "";
  $("found").textContent = `${keys.length} of ${of} views${$("wrong").checked ? asked : ""}`;
  $("clear").hidden = !FILTERS.some((id) => $(id).value) && !$("wrong").checked;
  let why = "No view fits: take back a filter.";
  if (state.split === state.uploads) why = "No picture yet: choose one of your own below.";
  else if (looking) why = "No wrong answer so far: the model is being asked about every view …";
  $("nothing").textContent = keys.length ? "" : why;
  Object.assign($("checking"), { hidden: !looking, max: status.views || 1, value: status.checked || 0 });
}

async function show(place) {
  const turn = ++state.turn; // a slower answer about an earlier view is dropped
  state.place = Math.min(Math.max(0, place), Math.max(0, state.keys.length - 1));
  const key = state.keys[state.place];
  const view = key === undefined ? null : await call(at("views", key));
  if (turn !== state.turn) return;
  state.view = view;
  $("answer").textContent = "";
  $("compared").replaceChildren();
  draw();
  if (!view) return;
  history.replaceState(null, "", `#${encodeURIComponent(state.split)}/${key}`);
  if (state.ready && view.pairs.length) {
    const { answers } = await call(at("answers", key));
    if (turn === state.turn) drawPairs(answers);
  }
}

async function ask() {
  if (!state.view || !$("question").value.trim()) throw new Error("type a question first");
  const turn = state.turn;
  $("answer").textContent = "…";
  try {
    const asked = { split: state.split, key: state.view.key, question: $("question").value };
    const { answer, probability, truth, seconds } = await post("/api/ask", asked);
    if (turn !== state.turn) return; // another view is shown by now
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
  const turn = state.turn;
  const { probabilities } = await post("/api/compare", { split: state.split, key: state.view.key, texts });
  if (turn !== state.turn) return;
  const rows = texts.map((text, i) => ({ text, probability: probabilities[i] }));
  rows.sort((one, other) => other.probability - one.probability);
  $("compared").replaceChildren(
    ...rows.map(({ text, probability }, place) => {
      const row = element("tr", undefined, place ? "" : "best");
      row.append(element("td", text), element("td", `${(100 * probability).toFixed(1)} %`));
      return row;
    }),
  );
}

async function upload() {
  const [file] = $("file").files;
  if (!file) return;
  $("file").value = "";
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const { split, key } = await call("/api/upload", { method: "POST", headers, body: file });
    await use(split, key);
  } catch (error) {
    throw new Error(`${file.name}: ${error.message}`);
  }
}

async function use(split, key) {
  state.split = $("split").value = split;
  for (const id of FILTERS) $(id).value = "";
  if ($("wrong").checked) await search(false);
  await list(key);
}

// Begins or ends the search for wrong answers.
async function search(on) {
  $("wrong").checked = on;
  try {
    if (on) await post("/api/check", { split: state.split });
    else await call("/api/check", { method: "DELETE" });
  } catch (error) {
    $("wrong").checked = false;
    throw error;
  }
}

const move = (steps) => attempt(() => show(state.place + steps));

// Looks how far the models and the search for wrong answers are, now and every second.
async function watch() {
  try {
    const split = state.split;
    state.status = { ...(await call(`/api/status?split=${encodeURIComponent(split)}`)), split };
    tellModels(state.status.models);
    if ($("wrong").checked) await extend();
    if (state.lost) $("error").hidden = true;
    state.lost = false;
  } catch (error) {
    state.lost = true;
    complain(error);
  }
  setTimeout(watch, 1000);
}

// A model's state stands where it is asked; what needs a model waits until it is there.
function tellModels(models) {
  for (const [name, is] of Object.entries(models)) {
    const parts = ({ ready: "", loading: "being loaded …" }[is] ?? is).split("`"); // every other one is a command
    $(name).replaceChildren(...parts.map((part, i) => (i % 2 ? element("code", part) : part)));
    $(name).classList.toggle("missing", is !== "loading");
  }
  $("ask").disabled = $("wrong").disabled = models.vlm !== "ready";
  $("compare").disabled = models.clip !== "ready";
  $("needs").hidden = models.vlm === "ready";
  if (models.vlm === "ready" && !state.ready) {
    state.ready = true;
    show(state.place).catch(complain);
  }
}

// More wrong answers were found: they join the list without moving the view that is shown.
async function extend() {
  const { keys } = await found();
  if (!$("wrong").checked) return;
  const shown = state.keys[state.place];
  Object.assign(state, { keys, place: Math.max(0, keys.indexOf(shown)) });
  tell();
  if (keys[state.place] === shown) drawPlace();
  else await show(state.place);
}

function listen() {
  $("split").addEventListener("change", () => attempt(() => use($("split").value)));
  for (const id of FILTERS) $(id).addEventListener("change", () => attempt(() => list()));
  // after a choice by mouse the arrow keys are for the views, not for the next choice
  for (const select of document.querySelectorAll("select"))
    select.addEventListener("change", () => select.matches(":focus-visible") || select.blur());
  $("clear").addEventListener("click", () => attempt(() => use(state.split, state.keys[state.place])));
  $("wrong").addEventListener("change", () => attempt(() => search($("wrong").checked).then(() => list())));
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("boxes").addEventListener("change", drawPicture);
  $("file").addEventListener("change", () => attempt(upload));
  for (const [id, action] of Object.entries({ asking: ask, comparing: compare })) {
    $(id).addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(action);
    });
  }
  addEventListener("hashchange", () => attempt(start));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input:not([type=checkbox], [type=file])");
    if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (["ArrowRight", "n"].includes(event.key)) move(1);
    else if (["ArrowLeft", "p"].includes(event.key)) move(-1);
    else if (event.key === "b") $("boxes").click();
  });
}

// Shows the view that the address names, else the first.
async function start() {
  const { splits, uploads } = await call("/api/splits");
  state.uploads = uploads;
  $("split").replaceChildren(...[...splits, uploads].map((name) => new Option(name)));
  const [name, key] = location.hash.slice(1).split("/");
  const named = [...splits, uploads].find((split) => encodeURIComponent(split) === name);
  await use(named ?? (splits.includes("valid") ? "valid" : splits[0]), key);
}

listen();
attempt(start).then(watch);
