"use strict";

// The texts and lists that the page shows, computed from the state in explore.js.

const shown = {
  get foundText() {
    return `${this.keys.length} of ${this.total} views`;
  },
  get emptyText() {
    return this.split === this.uploads ? "No picture yet. Drop one here, paste one, or open a file." : "No view matches. Clear a filter.";
  },
  // Models that cannot be used, and why; odd pieces are commands.
  get missingModels() {
    return Object.entries(this.models)
      .filter(([, status]) => status !== "ready")
      .map(([name, status]) => ({ name, pieces: (status === "loading" ? "loading …" : status).split("`") }));
  },
  get filterList() {
    return FILTERS.map((filter) => {
      const counts = { ...this.facets[filter.name] }, chosen = this.filters[filter.name] || "";
      if (chosen && !(chosen in counts)) counts[chosen] = 0; // stays, even if no view has it any more
      const nameOf = (value) => (filter.name === "error" ? (ERRORS[value] ?? `${value} wrong`) : value);
      const choices = Object.entries(counts).map(([value, count]) => ({ value, label: `${nameOf(value)} (${count})` }));
      return { ...filter, chosen, choices, isDisabled: Boolean(filter.isAboutAnswers) && !this.checked };
    });
  },
  get sortOrders() {
    return ORDERS.map((order) => ({ ...order, isDisabled: Boolean(order.isAboutAnswers) && !this.checked }));
  },
  get isFiltered() {
    return this.sort !== "name" || Object.values(this.filters).some(Boolean);
  },
  get checkText() {
    if (this.models.vlm !== "ready") return "To find wrong answers, the VLM has to be loaded.";
    if (this.checked >= this.views) return `The VLM has answered the questions about all ${this.views} views.`;
    const done = `${this.checked} of ${this.views} views answered`;
    return this.checked ? `${done}.` : `${done}: to filter and sort by answers, let the VLM answer all questions first.`;
  },
  // Which kart a question about an upload names depends on CLIP.
  get canAnswer() {
    return this.models.vlm === "ready" && this.models.clip !== "loading";
  },
  get position() {
    return this.keys.indexOf(this.key);
  },
  get hasNext() {
    return this.position < this.keys.length - 1;
  },
  get positionText() {
    return `${this.key}  (${this.position + 1} of ${this.keys.length})`;
  },
  cardText(card) {
    const parts = card.number === null ? [] : [`${card.number} kart${card.number === 1 ? "" : "s"}`];
    if (card.confidence !== null) parts.push(`conf. ${this.percent(card.confidence)}`);
    return parts.join(" · ") || card.key;
  },

  get isLabelled() {
    return Boolean(this.view && this.view.pairs.length);
  },
  // The questions of the table: answered ones, or those that the labels answer.
  get rows() {
    return this.answers.length ? this.answers : this.view ? this.view.pairs : [];
  },
  get contradictions() {
    return [...new Set(this.answers.flatMap((row) => row.contradictions))];
  },
  contradictionText(row) {
    return `expected: ${(row.contradictions ?? []).join("; ")}`;
  },
  givenText(row) {
    return row.answer === undefined ? "" : row.answer || "(empty)";
  },
  markOf(row) {
    return !row || typeof row.is_correct !== "boolean" ? "" : row.is_correct ? "correct" : "wrong";
  },
  get resultText() {
    if (!this.result) return "";
    const { confidence, truth } = this.result;
    return `confidence ${this.percent(confidence)}${truth === null ? "" : `, truth: ${truth}`}`;
  },
  get captionsHint() {
    const which = this.isLabelled ? "Of these, one is true and four are false. " : "";
    return `${which}One caption per line, up to 20, also your own. CLIP estimates the probability that each is true of the picture.`;
  },
  percent(share) {
    return share === undefined || share === null ? "" : `${(100 * share).toFixed(0)} %`;
  },
};
