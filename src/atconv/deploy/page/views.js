// For each task: the model's input, and what of its outputs is shown.

import { prepare, scale } from "./prepare.js";

const TOP = 5;
const STRENGTH = 0.5; // of colors over an image

/** Colors of classes, neighbors far apart. */
function colorOf(index) {
  const hue = (7 + 137.5 * index) % 360, lightness = index % 2 ? 0.45 : 0.6;
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

const asCss = (color) => `rgb(${color.join(" ")})`;

function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((x) => Math.exp(x - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / total);
}

/** Pixels with the color of each position's class; none where that is negative. */
function tinted({ width, height, data }, classAt) {
  const mixed = Uint8ClampedArray.from(data);
  for (let i = 0; i < width * height; i++) {
    const index = classAt(i);
    if (index < 0) continue;
    const color = colorOf(index);
    for (let c = 0; c < 3; c++) mixed[4 * i + c] += STRENGTH * (color[c] - mixed[4 * i + c]);
  }
  return { width, height, data: mixed };
}

function wholeImage(pixels, input) {
  return [scale(pixels, input.channels), [1, input.channels, pixels.height, pixels.width]];
}

const classification = {
  heading: "Classes",
  hint: "Choose an image to see its classes.",
  describe: ({ inputs }) => `images of ${inputs.images.size.join(" × ")} pixels`,
  input: (pixels, input) => [prepare(pixels, input), [1, input.channels, ...input.size]],
  show({ logits }, pixels, { classes, outputs }) {
    const { activation, thresholds } = outputs.logits, values = Array.from(logits.data);
    const several = activation === "sigmoid"; // labels an image
    const shares = several ? values.map((x) => 1 / (1 + Math.exp(-x))) : softmax(values);
    const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
    const best = several ? order.filter((i) => shares[i] >= thresholds[i]) : order.slice(0, TOP);
    const rows = best.map((i) => ({ name: classes[i], share: shares[i], text: percent(shares[i]) }));
    return { pixels, rows, none: "None of its classes." };
  },
};

const detection = {
  heading: "Objects",
  hint: "Choose an image to see its objects.",
  threshold: true,
  input: wholeImage,
  show({ boxes, scores, labels, masks }, pixels, { classes }, threshold) {
    const kept = Array.from(scores.data.keys()).filter((i) => scores.data[i] >= threshold);
    const size = pixels.width * pixels.height;
    const objects = kept.map((i) => ({
      index: Number(labels.data[i]), score: scores.data[i], box: Array.from(boxes.data.slice(4 * i, 4 * i + 4)),
      mask: masks?.data.subarray(i * size, (i + 1) * size),
    }));
    const classAt = (position) => objects.find(({ mask }) => mask[position] > 0.5)?.index ?? -1;
    return {
      pixels: masks ? tinted(pixels, classAt) : pixels,
      boxes: objects.map(({ index, box }) => ({ box, name: classes[index], color: asCss(colorOf(index)) })),
      rows: objects.map(({ index, score }) => (
        { name: classes[index], share: score, text: score.toFixed(2), color: asCss(colorOf(index)) }
      )),
      none: "No objects of this score.",
    };
  },
};

const segmentation = {
  heading: "Shares of the image",
  hint: "Choose an image to see the classes of its pixels.",
  input: wholeImage,
  show({ mask }, pixels, { classes }) {
    const counts = classes.map(() => 0);
    for (const index of mask.data) counts[index]++;
    const present = counts.map((_, i) => i).filter((i) => counts[i]).sort((a, b) => counts[b] - counts[a]);
    return {
      pixels: tinted(pixels, (i) => mask.data[i]),
      rows: present.map((i) => {
        const share = counts[i] / mask.data.length;
        return { name: classes[i], share, text: percent(share), color: asCss(colorOf(i)) };
      }),
    };
  },
};

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

export const VIEWS = { classification, detection, segmentation };
