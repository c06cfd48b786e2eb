"use strict";

// Loads views, filters them and queries the models; draw.js draws a view.
const $ = (id) => document.getElementById(id);
const FILTERS = ["track", "kart", "number"];
const state = { split: "", keys: [], total: 0, position: 0, view: null, ready: false, turn: 0, suggested: "" };
state.status = {};

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("no connection; is the command still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.detail || `error ${response.status}`);
  return content;
}

const post = (path, content) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

const urlOf = (resource, key) => `/api/${resource}/${encodeURIComponent(state.split)}/${encodeURIComponent(key)}`;

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

// Runs a user's action and shows its error until the next action succeeds.
async function attempt(action) {
  try {
    await action();
    $("error").hidden = true;
  } catch (error) {
    showError(error);
  }
}

// Sets a filter's options; the selected one stays, even if no view has it any more.
function fill(select, counts, all) {
  const selected = select.value;
  if (selected && !(selected in counts)) counts[selected] = 0;
  select.replaceChildren(new Option(all, ""));
  for (const [value, count] of Object.entries(counts)) select.append(new Option(`${value} (${count})`, value));
  select.value = selected;
}

function fetchViews() {
  const query = new URLSearchParams({ track: $("track").value, kart: $("kart").value, wrong: $("wrong").checked });
  if ($("number").value !== "") query.set("number", $("number").value);
  return call(`/api/views/${encodeURIComponent(state.split)}?${query}`);
}

async function listViews(key) {
  const { keys, total, tracks, karts, numbers } = await fetchViews();
  fill($("track"), tracks, "all");
  fill($("kart"), karts, "any");
  fill($("number"), numbers, "any");
  Object.assign(state, { keys, total });
  showCount();
  await show(Math.max(0, keys.indexOf(key)));
}

// Shows how many views match, and why if none does.
function showCount() {
  const { keys, total, status } = state;
  const searching = $("wrong").checked && (status.split !== state.split || status.checked < status.views);
  const checked = status.split === state.split ? `, ${status.checked} checked` : "";
  $("found").textContent = `${keys.length} of ${total} views${$("wrong").checked ? checked : ""}`;
  $("clear").hidden = !FILTERS.some((id) => $(id).value) && !$("wrong").checked;
  let reason = "No view matches. Clear a filter.";
  if (state.split === state.uploads) reason = "No image yet. Upload one below.";
  else if (searching) reason = "No wrong answer so far; the model is answering the questions about every view …";
  $("nothing").textContent = keys.length ? "" : reason;
  Object.assign($("checking"), { hidden: !searching, max: status.views || 1, value: status.checked || 0 });
}

async function show(position) {
  const turn = ++state.turn; // late responses about an earlier view are dropped
  state.position = Math.min(Math.max(0, position), Math.max(0, state.keys.length - 1));
  const key = state.keys[state.position];
  const view = key === undefined ? null : await call(urlOf("views", key));
  if (turn !== state.turn) return;
  state.view = view;
  $("answer").textContent = "";
  $("compared").replaceChildren();
  draw();
  if (!view) return;
  history.replaceState(null, "", `#${encodeURIComponent(state.split)}/${key}`);
  if (state.ready && view.pairs.length) {
    const { answers } = await call(urlOf("answers", key));
    if (turn === state.turn) drawPairs(answers);
  }
}

async function ask() {
  if (!state.view || !$("question").value.trim()) throw new Error("type a question first");
  const turn = state.turn;
  $("answer").textContent = "…";
  try {
    const request = { split: state.split, key: state.view.key, question: $("question").value };
    const { answer, probability, truth, seconds } = await post("/api/ask", request);
    if (turn !== state.turn) return; // another view is shown by now
    const label = truth === null ? "" : `, truth: ${truth}`;
    const confidence = `confidence ${(100 * probability).toFixed(0)} %`;
    $("answer").textContent = `${answer || "(empty)"}  (${confidence}, ${seconds.toFixed(2)} s${label})`;
  } catch (error) {
    $("answer").textContent = "";
    throw error;
  }
}

async function compare() {
  const texts = $("texts").value.split("\n").map((text) => text.trim()).filter(Boolean);
  if (!state.view || !texts.length) throw new Error("write one caption per line first");
  const turn = state.turn;
  const { probabilities } = await post("/api/compare", { split: state.split, key: state.view.key, texts });
  if (turn !== state.turn) return;
  const rows = texts.map((text, i) => ({ text, probability: probabilities[i] }));
  rows.sort((one, other) => other.probability - one.probability);
  $("compared").replaceChildren(
    ...rows.map(({ text, probability }, rank) => {
      const row = element("tr", undefined, rank ? "" : "best");
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
    await openSplit(split, key);
  } catch (error) {
    throw new Error(`${file.name}: ${error.message}`);
  }
}

async function openSplit(split, key) {
  state.split = $("split").value = split;
  for (const id of FILTERS) $(id).value = "";
  if ($("wrong").checked) await search(false);
  await listViews(key);
}

// Starts or stops the search for wrong answers.
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

const move = (steps) => attempt(() => show(state.position + steps));

// Polls the state of the models and of the search for wrong answers once per second.
async function poll() {
  try {
    const split = state.split;
    state.status = { ...(await call(`/api/status?split=${encodeURIComponent(split)}`)), split };
    showModels(state.status.models);
    if ($("wrong").checked) await extend();
    if (state.disconnected) $("error").hidden = true;
    state.disconnected = false;
  } catch (error) {
    state.disconnected = true;
    showError(error);
  }
  setTimeout(poll, 1000);
}

// Shows the state of each model, and enables the controls that need it once it is ready.
function showModels(models) {
  for (const [name, status] of Object.entries(models)) {
    const parts = ({ ready: "", loading: "loading …" }[status] ?? status).split("`"); // odd parts are commands
    $(name).replaceChildren(...parts.map((part, i) => (i % 2 ? element("code", part) : part)));
    $(name).classList.toggle("missing", status !== "loading");
  }
  $("ask").disabled = $("wrong").disabled = models.vlm !== "ready";
  $("compare").disabled = models.clip !== "ready";
  $("needs").hidden = models.vlm === "ready";
  if (models.vlm === "ready" && !state.ready) {
    state.ready = true;
    show(state.position).catch(showError);
  }
}

// Adds newly found wrong answers to the list without changing the shown view.
async function extend() {
  const { keys } = await fetchViews();
  if (!$("wrong").checked) return;
  const shown = state.keys[state.position];
  Object.assign(state, { keys, position: Math.max(0, keys.indexOf(shown)) });
  showCount();
  if (keys[state.position] === shown) drawPosition();
  else await show(state.position);
}

function addListeners() {
  $("split").addEventListener("change", () => attempt(() => openSplit($("split").value)));
  for (const id of FILTERS) $(id).addEventListener("change", () => attempt(() => listViews()));
  // after a selection by mouse the arrow keys move between views, not between options
  for (const select of document.querySelectorAll("select"))
    select.addEventListener("change", () => select.matches(":focus-visible") || select.blur());
  $("clear").addEventListener("click", () => attempt(() => openSplit(state.split, state.keys[state.position])));
  $("wrong").addEventListener("change", () => attempt(() => search($("wrong").checked).then(() => listViews())));
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("boxes").addEventListener("change", drawImage);
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

// Shows the view given in the URL, or the first.
async function start() {
  const { splits, uploads } = await call("/api/splits");
  state.uploads = uploads;
  $("split").replaceChildren(...[...splits, uploads].map((name) => new Option(name)));
  const [name, key] = location.hash.slice(1).split("/");
  const named = [...splits, uploads].find((split) => encodeURIComponent(split) === name);
  await openSplit(named ?? (splits.includes("valid") ? "valid" : splits[0]), key);
}

addListeners();
attempt(start).then(poll);
