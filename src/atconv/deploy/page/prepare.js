// From an image file to the input of a model, as `atconv predict` makes it: Pillow's resampling, to the bit.

export const LIMITS = { megabytes: 20, megapixels: 25 };
export class TooLarge extends Error {}

/** Throws TooLarge for a file that would fill the memory. A browser knows an image's size before it decodes it. */
async function checkSize(file) {
  const { megabytes, megapixels } = LIMITS;
  if (file.size > megabytes * 1e6) {
    throw new TooLarge(`has ${Math.ceil(file.size / 1e6)} MB; up to ${megabytes} MB are taken`);
  }
  const image = new Image(), address = URL.createObjectURL(file);
  const size = await new Promise((resolve, reject) => {
    image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => reject(new DOMException("no image"));
    image.src = address;
  }).finally(() => URL.revokeObjectURL(address));
  if (size[0] * size[1] > megapixels * 1e6) {
    throw new TooLarge(`has ${size.join(" × ")} pixels; up to ${megapixels} megapixels are taken`);
  }
}

/** Pixels of an image file, upright, as RGBA. Throws where the browser does not read it, or it is too large. */
export async function decode(file) {
  await checkSize(file);
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let { data } = context.getImageData(0, 0, width, height);
  if (isTranslucent(data)) data = readStraight(bitmap) ?? data;
  bitmap.close();
  return { width, height, data };
}

function isTranslucent(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] > 0 && rgba[i] < 255) return true;
  return false;
}

/** A canvas multiplies colors by alpha and rounds; WebGL does not. Null where it has no texture so large. */
function readStraight(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return data;
}

/** RGBA on white → RGB or gray, of 8 bits. */
export function flatten({ width, height, data }, channels) {
  const flat = new Uint8Array(channels * width * height);
  const rgb = [0, 0, 0];
  for (let i = 0, j = 0; i < data.length; i += 4) {
    const alpha = data[i + 3];
    for (let c = 0; c < 3; c++) rgb[c] = Math.floor((data[i + c] * alpha + 255 * (255 - alpha)) / 255 + 0.5);
    if (channels === 1) flat[j++] = (19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2] + 32768) >> 16;
    else for (let c = 0; c < 3; c++) flat[j++] = rgb[c];
  }
  return { width, height, channels, data: flat };
}

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: cubic },
};
const ONE = 2 ** 22; // weights are integers

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** First position and integer weights in the source, for `count` outputs from `start` on. */
function weigh(size, outputs, start, count, name) {
  const scale = size / outputs;
  if (name === "nearest") {
    const firsts = [];
    for (let at = scale / 2; firsts.length < start + count; at += scale) firsts.push(Math.floor(at)); // rounds as Pillow
    return firsts.slice(start).map((first) => ({ first, weights: [ONE] }));
  }
  const filter = FILTERS[name];
  if (!filter) throw new Error(`no resampling ${name}: there are nearest, ${Object.keys(FILTERS).join(", ")}`);
  const spread = Math.max(scale, 1), support = filter.support * spread;
  return Array.from({ length: count }, (_, i) => {
    const center = (start + i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(size, Math.trunc(center + support + 0.5));
    const values = [];
    for (let x = first; x < end; x++) values.push(filter.at((x - center + 0.5) / spread));
    const total = values.reduce((a, b) => a + b, 0);
    const weights = values.map((value) => Math.trunc((value / total) * ONE + (value < 0 ? -0.5 : 0.5)));
    return { first, weights };
  });
}

/** A window of the resized image: `left`, `top`, `width` and `height` of it. */
export function resample(image, outputs, window, name) {
  const { channels } = image;
  const columns = weigh(image.width, outputs.width, window.left, window.width, name);
  const rows = weigh(image.height, outputs.height, window.top, window.height, name);
  const top = rows[0].first, last = rows[rows.length - 1];
  const height = last.first + last.weights.length - top;
  const between = new Uint8ClampedArray(channels * window.width * height);
  for (let y = 0; y < height; y++) {
    const line = (top + y) * image.width;
    columns.forEach(({ first, weights }, x) => {
      for (let c = 0; c < channels; c++) {
        let sum = ONE / 2;
        for (let k = 0; k < weights.length; k++) sum += image.data[(line + first + k) * channels + c] * weights[k];
        between[(y * window.width + x) * channels + c] = Math.floor(sum / ONE);
      }
    });
  }
  const data = new Uint8ClampedArray(channels * window.width * window.height);
  const stride = window.width * channels;
  rows.forEach(({ first, weights }, y) => {
    for (let i = 0; i < stride; i++) {
      let sum = ONE / 2;
      for (let k = 0; k < weights.length; k++) sum += between[(first - top + k) * stride + i] * weights[k];
      data[y * stride + i] = Math.floor(sum / ONE);
    }
  });
  return { width: window.width, height: window.height, channels, data };
}

/** RGBA → C H W of float32 in 0…1, as large as the image. */
export function scale(pixels, channels) {
  const { data } = flatten(pixels, channels), size = pixels.width * pixels.height;
  const values = new Float32Array(data.length);
  for (let i = 0; i < size; i++) for (let c = 0; c < channels; c++) values[c * size + i] = data[i * channels + c] / 255;
  return values;
}

function roundHalfToEven(x) {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

/** RGBA → C H W of float32: the steps of `preparation` in export.json. */
export function prepare(pixels, input) {
  const image = flatten(pixels, input.channels);
  const [height, width] = input.size;
  const shorter = Math.floor(Math.min(height, width) / input.crop_pct);
  const factor = Math.min(image.width, image.height);
  const outputs = {
    width: Math.floor((shorter * image.width) / factor), height: Math.floor((shorter * image.height) / factor),
  };
  const window = {
    width, height,
    left: roundHalfToEven((outputs.width - width) / 2), top: roundHalfToEven((outputs.height - height) / 2),
  };
  const { data, channels } = resample(image, outputs, window, input.interpolation);
  const values = new Float32Array(data.length);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < channels; c++) {
      values[c * width * height + i] = (data[i * channels + c] / 255 - input.mean[c]) / input.std[c];
    }
  }
  return values;
}
