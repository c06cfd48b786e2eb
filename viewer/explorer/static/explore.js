"use strict";

// The page's state and requests, as a component of Alpine.js; picture.js draws.

const isDark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => (document.documentElement.dataset.bsTheme = isDark.matches ? "dark" : "light");
isDark.addEventListener("change", setTheme);
setTheme();

const NUM_CARDS = 60; // of the grid at first, and added each time its end is reached
const FILTERS = [
  { name: "track", label: "Track", all: "all" },
  { name: "kart", label: "Kart", all: "any" },
  { name: "number", label: "Karts in view", all: "any" },
  { name: "size", label: "Smallest kart, pixels", all: "any" },
  { name: "error", id: "error-filter", label: "Answers of the VLM", all: "all", isAboutAnswers: true },
  { name: "confidence", label: "Lowest confidence", all: "any", isAboutAnswers: true },
];
const ERRORS = { any: "any wrong", none: "all correct", contradiction: "contradictory" };
const ORDERS = [
  { value: "name", label: "name" },
  { value: "size", label: "smallest kart first" },
  { value: "number", label: "most karts first" },
  { value: "errors", label: "most wrong answers first", isAboutAnswers: true },
  { value: "confidence", label: "least confident first", isAboutAnswers: true },
];

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

const send = (method, path, content) =>
  call(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

const noView = () => ({ view: null, answers: [], isUnfamiliar: false, result: null, compared: [] });

const explorer = () => ({
  splits: [], uploads: "", split: "", filters: {}, sort: "name", limit: NUM_CARDS,
  keys: [], cards: [], total: 0, facets: {}, models: {}, views: 0, checked: 0, isChecking: false,
  key: "", ...noView(), boxes: true, question: "", asking: false, texts: "", suggested: "", comparing: false,
  error: "", isDisconnected: false, dragging: false, isStale: false, turn: 0, listTurn: 0, scrolled: 0,

  async init() {
    makeZoomable(this.$refs.picture);
    const observer = new IntersectionObserver((entries) => entries[0].isIntersecting && this.showMore());
    this.watchEnd = () => {
      observer.disconnect(); // so that it reports again, also where the screen has room for more
      observer.observe(this.$refs.more);
    };
    this.$refs.filters.open = innerWidth >= 768;
    await this.attempt(async () => {
      const { splits, uploads } = await call("/api/splits");
      Object.assign(this, { splits: [...splits, uploads], uploads });
      await this.route();
    });
    this.poll();
  },

  // Runs a user's action and shows its error until the next action succeeds.
  async attempt(action) {
    try {
      await action.call(this);
      this.error = "";
    } catch (error) {
      this.error = error.message;
    }
  },

  urlOf(resource, key) {
    return `/api/${resource}/${encodeURIComponent(this.split)}/${encodeURIComponent(key)}`;
  },
  linkTo(key) {
    return key === undefined ? null : `#${encodeURIComponent(this.split)}/${encodeURIComponent(key)}`;
  },

  // Opens what the address names: a split's grid, or one of its views.
  async route() {
    const [name, key] = location.hash.slice(1).split("/").map(decodeURIComponent);
    const split = this.splits.includes(name) ? name : this.splits.includes("valid") ? "valid" : this.splits[0];
    if (!this.key) this.scrolled = scrollY;
    if (split !== this.split || (key && !this.keys.includes(key))) {
      Object.assign(this, { split, filters: {}, sort: "name", limit: NUM_CARDS, cards: [], scrolled: 0, checked: 0 });
      await this.list();
    }
    await this.open(key || "");
    this.$nextTick(() => scrollTo(0, this.key ? 0 : this.scrolled));
  },

  async list() {
    const chosen = Object.entries(this.filters).filter(([, value]) => value);
    const query = new URLSearchParams([...chosen, ["sort", this.sort], ["limit", this.limit]]);
    const turn = ++this.listTurn; // late responses to earlier requests are dropped
    const found = await call(`/api/views/${encodeURIComponent(this.split)}?${query}`);
    if (turn !== this.listTurn) return;
    Object.assign(this, found);
    this.$nextTick(this.watchEnd);
  },

  async open(key) {
    const turn = ++this.turn; // late responses about an earlier view are dropped
    Object.assign(this, { key, ...noView() });
    if (!key) return;
    const view = await call(this.urlOf("views", key));
    if (turn !== this.turn) return;
    this.view = view;
    setZoom(this.$refs.picture, 1, 0, 0);
    this.draw();
    // the user's own captions stay, those of the last view are replaced
    if (this.texts === this.suggested) this.texts = this.suggested = view.choices.join("\n");
    if (this.canAnswer) await this.answerAll();
  },

  async answerAll() {
    const turn = this.turn;
    const { answers, is_unfamiliar } = await call(this.urlOf("answers", this.key));
    if (turn === this.turn) Object.assign(this, { answers, isUnfamiliar: is_unfamiliar === true });
  },

  draw() {
    const { view, key } = this;
    const onError = () => (this.error = `${key}: its image is missing or broken`);
    drawView(this.$refs.picture, this.urlOf("images", key), view.track !== null, this.boxes ? view.boxes : [], onError);
  },
  zoom(factor) {
    zoomBy(this.$refs.picture, factor);
  },

  async ask() {
    this.result = null;
    if (!this.question.trim()) throw new Error("type a question first");
    const turn = this.turn;
    this.asking = true;
    try {
      const result = await send("POST", "/api/ask", { split: this.split, key: this.key, question: this.question });
      if (turn === this.turn) this.result = result;
    } finally {
      this.asking = false;
    }
  },
  askThis(question) {
    this.question = question;
    return this.attempt(this.ask);
  },

  async compare() {
    this.compared = [];
    const texts = [...new Set(this.texts.split("\n").map((text) => text.trim()).filter(Boolean))];
    if (!texts.length) throw new Error("write one caption per line first");
    const { turn, view } = this;
    this.comparing = true;
    try {
      const { probabilities } = await send("POST", "/api/compare", { split: this.split, key: this.key, texts });
      if (turn !== this.turn) return;
      const rows = texts.map((text, i) => ({ text, probability: probabilities[i], percent: this.percent(probabilities[i]) }));
      rows.sort((one, other) => other.probability - one.probability);
      for (const row of rows) {
        const isTrue = view.captions.includes(row.text);
        const label = view.captions.length ? { label: isTrue ? "✓ true" : "✗ false", mark: isTrue ? "correct" : "wrong" } : {};
        Object.assign(row, label, { isBest: row === rows[0] });
      }
      this.compared = rows;
    } finally {
      this.comparing = false;
    }
  },

  upload(file) {
    return this.attempt(async () => {
      this.result = null;
      try {
        const headers = { "Content-Type": "application/octet-stream" };
        const { split, key } = await call("/api/upload", { method: "POST", headers, body: await reduce(file) });
        location.hash = `#${encodeURIComponent(split)}/${key}`;
      } catch (error) {
        throw new Error(`${file.name}: ${error.message}`);
      }
    });
  },
  onChooseFile(event) {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) return this.upload(file);
  },
  onDrop(event) {
    this.dragging = false;
    const [file] = event.dataTransfer.files;
    if (file) return this.upload(file);
    this.error = "drop a picture's file; a link or a text is none";
  },
  onDragLeave(event) {
    if (!event.relatedTarget) this.dragging = false;
  },
  onPaste(event) {
    const [file] = event.clipboardData.files;
    if (file) return this.upload(file);
  },
  onKey(event) {
    const isTyping = event.target.matches("textarea, select, input:not([type=checkbox], [type=file])");
    if (isTyping || event.ctrlKey || event.altKey || event.metaKey || !this.key) return;
    const step = { ArrowRight: 1, n: 1, ArrowLeft: -1, p: -1 }[event.key];
    if (step && this.keys[this.position + step]) location.hash = this.linkTo(this.keys[this.position + step]);
    else if (event.key === "Escape") location.hash = `#${encodeURIComponent(this.split)}`;
    else if (event.key === "+") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "b" && this.view) {
      this.boxes = !this.boxes;
      this.draw();
    }
  },

  openSplit(event) {
    location.hash = `#${encodeURIComponent(event.target.value)}`;
  },
  choose(name, event) {
    this.filters[name] = event.target.value;
    return this.restart();
  },
  chooseSort(event) {
    this.sort = event.target.value;
    return this.restart();
  },
  clearFilters() {
    Object.assign(this, { filters: {}, sort: "name" });
    return this.restart();
  },
  restart() {
    this.limit = NUM_CARDS;
    return this.attempt(this.list);
  },
  showMore() {
    if (this.cards.length < this.limit || this.cards.length >= this.keys.length) return; // a request is under way
    this.limit += NUM_CARDS;
    return this.attempt(this.list);
  },
  toggleCheck() {
    return this.attempt(async () => {
      await send(this.isChecking ? "DELETE" : "POST", "/api/check", { split: this.split });
      this.isChecking = !this.isChecking;
    });
  },

  // Requests the state of the models and of the check once per second.
  async poll() {
    try {
      const { split, checked, canAnswer } = this;
      const status = await call(`/api/status?split=${encodeURIComponent(split)}`);
      if (split === this.split) {
        const { models, views, checked: now, is_checking: isChecking } = status;
        Object.assign(this, { models, views, checked: now, isChecking, isStale: this.isStale || now !== checked });
        if (this.isStale && !this.key) {
          await this.list();
          this.isStale = false;
        }
        if (!canAnswer && this.canAnswer && this.view) await this.attempt(this.answerAll);
      }
      if (this.isDisconnected) this.error = "";
      this.isDisconnected = false;
    } catch (error) {
      this.isDisconnected = true;
      this.error = error.message;
    }
    setTimeout(() => this.poll(), 1000);
  },
});

document.addEventListener("alpine:init", () => {
  // spreading would evaluate the getters of what is shown
  const component = () => Object.defineProperties(explorer(), Object.getOwnPropertyDescriptors(shown));
  Alpine.data("explorer", component);
});
