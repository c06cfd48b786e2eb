// TuxNano and CLIP on onnxruntime-web: what is recognised, answers to questions, probabilities of captions.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { cropPixels, decodeImage, viewPixels } from "./pixels.js";
import { Tokenizer } from "./tokenizer.js";

ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
// threads need a cross-origin isolated page, which few static hosts give; the models are fast enough without
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

const load = async (name) => {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
};
const int64 = (rows) => new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt),
  Array.isArray(rows[0]) ? [rows.length, rows[0].length] : [rows.length]);
const float32 = (data, dims) => new ort.Tensor("float32", data, dims);
const argmax = (values) => values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
const range = (length) => Array.from({ length }, (_, index) => index);

// True where a new token attends to one of all tokens: itself, and the tokens before it that are not padding.
function causalMask(isToken, numCached) {
  const all = isToken[0].length, length = all - numCached, mask = new Uint8Array(isToken.length * length * all);
  isToken.forEach((row, batch) => {
    for (let query = 0; query < length; query++) {
      for (let key = 0; key <= query + numCached; key++) {
        mask[(batch * length + query) * all + key] = row[key] || key === query + numCached;
      }
    }
  });
  return new ort.Tensor("bool", mask, [isToken.length, 1, length, all]);
}

export class Models {
  static async load() {
    const models = new Models();
    const files = ["config.json", "merges.txt", "weights.bin"].map(load);
    const [config, merges, weights] = await Promise.all(files);
    models.config = await config.json();
    models.tokenizer = new Tokenizer(await merges.text(), models.config.vocabulary);
    models.weights = new Uint8Array(await weights.arrayBuffer());
    await models.loadGraphs("vlm_image", "vlm_decoder");
    return models;
  }

  async loadGraphs(...names) {
    const externalData = [{ path: "weights.bin", data: this.weights }];
    for (const name of names) {
      const graph = new Uint8Array(await (await load(`${name}.onnx`)).arrayBuffer());
      this[name] = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
    }
  }

  // Encode a picture for the questions about it; return what is recognised.
  async open(blob) {
    const image = await decodeImage(blob), { karts, tracks, prefix, cache } = this.config;
    const view = float32(viewPixels(image), [1, 3, 100, 150]);
    const recognised = await this.vlm_image.run({ pixel_values: view });
    [this.image, this.imageFeatures] = [image, null];
    this.imageTokens = recognised.image_tokens;
    const [layers, heads, headDim] = cache;
    const empty = float32(new Float32Array(0), [layers, 2, 1, heads, 0, headDim]);
    this.prefix = (await this.decode([prefix], [prefix.map(() => true)], [range(prefix.length)], empty, [0])).present;
    const list = (name) => Array.from(recognised[name].data);
    const [ego, present, place, total, track] = ["ego", "present", "place", "total", "track"].map(list);
    return {
      karts: karts.map((name, i) => ({ name, ego: ego[i], present: present[i], y: place[2 * i], x: place[2 * i + 1] })),
      total: { value: argmax(total), probability: Math.max(...total) },
      track: { value: tracks[argmax(track)], probability: Math.max(...track) },
    };
  }

  decode(rows, isToken, positions, past, pastRows) {
    return this.vlm_decoder.run({
      rows: int64(rows), image_tokens: this.imageTokens, mask: causalMask(isToken, past.dims[4]),
      position_ids: int64(positions), past, past_rows: int64(pastRows),
    });
  }

  // Answer questions about the open picture greedily, in one batch: [{answer, probability, margin}].
  async ask(questions) {
    const { beforeQuestion, afterQuestion, end, maxNewTokens, prefix, numTokens } = this.config;
    const encoded = questions.map((question) => this.tokenizer.encode(beforeQuestion + question.trim() + afterQuestion));
    const length = Math.max(...encoded.map((rows) => rows.length));
    const padding = encoded.map((rows) => length - rows.length);
    const answers = questions.map(() => ({ rows: [], logProbability: 0, margin: Infinity }));
    let active = range(questions.length), past = this.prefix, pastRows = active.map(() => 0);
    let rows = encoded.map((ids, i) => [...Array(padding[i]).fill(end), ...ids]);
    let isToken = rows.map((ids, i) => [...prefix.map(() => true), ...ids.map((_, j) => j >= padding[i])]);
    let positions = rows.map((ids, i) => ids.map((_, j) => Math.max(0, prefix.length + j - padding[i])));
    for (let step = 0; step < maxNewTokens && active.length; step++) {
      const { logits, present } = await this.decode(rows, isToken, positions, past, pastRows);
      const numRows = logits.dims[1], unfinished = [];
      active.forEach((index, i) => {
        const values = Array.from(logits.data.subarray(i * numRows, (i + 1) * numRows)), next = argmax(values);
        const sum = values.reduce((total, value, row) => total + numTokens[row] * Math.exp(value - values[next]), 0);
        const answer = answers[index], second = Math.max(...values.filter((_, row) => row !== next));
        answer.logProbability -= Math.log(sum);
        answer.margin = Math.min(answer.margin, values[next] - second);
        if (next === end) return;
        answer.rows.push(next);
        unfinished.push(i);
      });
      past = present;
      pastRows = unfinished;
      active = unfinished.map((i) => active[i]);
      rows = active.map((index) => [answers[index].rows.at(-1)]);
      isToken = unfinished.map((i) => [...isToken[i], true]);
      positions = unfinished.map((i) => [positions[i].at(-1) + 1]);
    }
    return answers.map(({ rows, logProbability, margin }) => ({
      answer: this.tokenizer.decode(rows).trim(), probability: Math.exp(logProbability), margin,
    }));
  }

  // Compare captions with the open picture: [{similarity, probability}]; CLIP is loaded at first use.
  async compare(captions) {
    if (!this.clip_text) await this.loadGraphs("clip_image", "clip_text");
    if (!this.imageFeatures) {
      const crop = float32(cropPixels(this.image), [1, 3, 100, 100]);
      this.imageFeatures = (await this.clip_image.run({ pixel_values: crop })).image_features.data;
    }
    const { eos, logitScale, logitBias } = this.config;
    const encoded = captions.map((caption) => this.tokenizer.encode(caption + eos));
    const length = Math.max(...encoded.map((rows) => rows.length));
    const rows = encoded.map((ids) => [...ids, ...Array(length - ids.length).fill(0)]);
    const isToken = encoded.map((ids) => range(length).map((index) => index < ids.length));
    const inputs = { rows: int64(rows), mask: causalMask(isToken, 0), last: int64(encoded.map((ids) => ids.length - 1)) };
    const { data } = (await this.clip_text.run(inputs)).text_features, dim = this.imageFeatures.length;
    return captions.map((_, i) => {
      const similarity = this.imageFeatures.reduce((sum, value, j) => sum + value * data[i * dim + j], 0);
      return { similarity, probability: 1 / (1 + Math.exp(-(logitScale * similarity + logitBias))) };
    });
  }
}
