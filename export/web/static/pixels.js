// Pixels as the models were trained on: Pillow's and PyTorch's resampling, to the bit where these round to 8 bits.
// An image is {data, width, height} with three values per pixel, row by row.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  lanczos: { support: 3, weight: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
};
const PRECISION = 2 ** 22; // of Pillow's weights
const VIEW = [150, 100];
const CROP = 192;

// The first source pixel of each target pixel, and the weights of the pixels from there on.
function weightsOf(from, to, { support, weight }, exact) {
  const scale = from / to, stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, target) => {
    const center = (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(center + support * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => weight((i + first - center + 0.5) / stretch));
    const sum = weights.reduce((one, other) => one + other, 0);
    const scaled = weights.map((value) => (exact ? value / sum : (value / sum) * PRECISION));
    return [first, exact ? scaled : scaled.map((value) => Math.trunc(value + (value < 0 ? -0.5 : 0.5)))];
  });
}

// Resample along one axis, whose pixels are `step` values apart.
function resampleAxis(source, target, lines, lineStep, targetLineStep, step, weights, exact) {
  for (let line = 0; line < lines; line++) {
    weights.forEach(([first, factors], index) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0, place = line * lineStep + first * step + channel;
        for (const factor of factors) {
          sum += factor * source[place];
          place += step;
        }
        // a Uint8ClampedArray clamps; it would round, so that Pillow's half and truncation come first
        target[line * targetLineStep + index * step + channel] = exact ? sum : Math.floor((sum + PRECISION / 2) / PRECISION);
      }
    });
  }
}

// Resize; `exact` keeps floats, as PyTorch's antialiased interpolation does, else each pass rounds to 8 bits.
function resize({ data, width, height }, toWidth, toHeight, filter, exact = false) {
  const make = (size) => (exact ? new Float32Array(size) : new Uint8ClampedArray(size));
  if (width !== toWidth) {
    const weights = weightsOf(width, toWidth, FILTERS[filter], exact), target = make(3 * toWidth * height);
    resampleAxis(data, target, height, 3 * width, 3 * toWidth, 3, weights, exact);
    [data, width] = [target, toWidth];
  }
  if (height !== toHeight) {
    const weights = weightsOf(height, toHeight, FILTERS[filter], exact), target = make(3 * width * toHeight);
    resampleAxis(data, target, width, 3, 3, 3 * width, weights, exact);
    [data, height] = [target, toHeight];
  }
  return { data, width, height };
}

// Normalise by mean and deviation 0.5, channel by channel.
function normalise({ data, width, height }, scale, offset = -1) {
  const area = width * height, pixels = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let channel = 0; channel < 3; channel++) pixels[channel * area + i] = data[3 * i + channel] * scale + offset;
  }
  return pixels;
}

const roundHalfEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// The VLM's pixels: the whole picture as a view.
export const viewPixels = (image) => normalise(resize(image, ...VIEW, "lanczos"), 2 / 255);

// CLIP's pixels: the short side to 192, the middle square of it, then as high as a view.
export function cropPixels(image) {
  const shortSide = Math.min(image.width, image.height);
  const [width, height] = [image.width, image.height].map((side) => Math.trunc((CROP * side) / shortSide));
  const { data } = resize(image, width, height, "bilinear");
  const [left, top] = [width, height].map((side) => roundHalfEven((side - CROP) / 2));
  const crop = new Float32Array(3 * CROP * CROP);
  for (let y = 0; y < CROP; y++) {
    const start = 3 * ((top + y) * width + left);
    for (let i = 0; i < 3 * CROP; i++) crop[3 * CROP * y + i] = data[start + i] * (2 / 255) - 1;
  }
  return normalise(resize({ data: crop, width: CROP, height: CROP }, VIEW[1], VIEW[1], "bilinear", true), 1, 0);
}

// Decode a picture of any size to RGB.
export async function decodeImage(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = canvas.getImageData(0, 0, width, height).data, data = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    data[j++] = rgba[i];
    data[j++] = rgba[i + 1];
    data[j++] = rgba[i + 2];
  }
  return { data, width, height };
}
