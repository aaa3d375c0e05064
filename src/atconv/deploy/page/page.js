import * as ort from "./ort.wasm.bundle.min.mjs";
import { decode, LIMITS, TooLarge } from "./prepare.js";
import { VIEWS } from "./views.js";

const SMALL = 480, LARGE = 1600; // pixels of the longer side that is drawn
const byId = (id) => document.getElementById(id);
let about, view, session, latest = 0, shown = null;

/** Outputs of the model for an image file, and its pixels. */
export async function predict(file) {
  const pixels = await decode(file);
  const [data, shape] = view.input(pixels, about.inputs.images);
  return { outputs: await session.run({ images: new ort.Tensor("float32", data, shape) }), pixels };
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function row({ name, share, text, color }) {
  const made = element("li", ""), track = element("div", "track"), bar = element("div", "bar");
  bar.style.width = `${100 * share}%`;
  if (color) bar.style.background = color;
  track.append(bar);
  made.append(element("span", "name", name), element("span", "share", text), track);
  return made;
}

async function draw({ width, height, data }, boxes) {
  const canvas = byId("preview"), context = canvas.getContext("2d"), longer = Math.max(width, height);
  const factor = longer < SMALL ? Math.ceil(SMALL / longer) : Math.min(1, LARGE / longer);
  canvas.width = Math.max(1, Math.round(factor * width));
  canvas.height = Math.max(1, Math.round(factor * height));
  const bitmap = await createImageBitmap(new ImageData(new Uint8ClampedArray(data), width, height));
  context.imageSmoothingEnabled = factor < 1;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const unit = Math.max(canvas.width, canvas.height) / 240;
  context.lineWidth = unit;
  context.font = `${8 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { box, name, color } of boxes) {
    const [left, top, right, bottom] = box.map((value) => factor * value);
    context.strokeStyle = context.fillStyle = color;
    context.strokeRect(left, top, right - left, bottom - top);
    context.fillRect(left, top, context.measureText(name).width + 2 * unit, 10 * unit);
    context.fillStyle = "#000";
    context.fillText(name, left + unit, top + unit);
  }
  canvas.hidden = false;
}

async function show() {
  const { outputs, pixels, name } = shown;
  const result = view.show(outputs, pixels, about, Number(byId("threshold").value));
  await draw(result.pixels, result.boxes ?? []);
  byId("preview").setAttribute("aria-label", name);
  byId("name").textContent = `${name}, ${pixels.width} × ${pixels.height}`;
  byId("results").replaceChildren(...result.rows.map(row));
  byId("status").textContent = result.rows.length ? "" : result.none;
}

function clear(status = "") {
  byId("error").textContent = "";
  byId("status").textContent = status;
  byId("results").replaceChildren();
}

function reason(error) {
  if (error instanceof TooLarge) return `${error.message}. Make it smaller.`;
  if (error instanceof DOMException) return "is not an image that this browser reads. PNG, JPEG, WebP, GIF and AVIF files are.";
  return `was read, but the model failed: ${error.message}`;
}

async function open(file) {
  const turn = ++latest;
  clear("Looking at the image …");
  await new Promise((resolve) => setTimeout(resolve, 20)); // the browser shows that first
  try {
    const predicted = await predict(file);
    if (turn !== latest) return;
    shown = { ...predicted, name: file.name };
    await show();
  } catch (error) {
    if (turn !== latest) return;
    shown = null;
    clear();
    byId("preview").hidden = true;
    byId("name").textContent = "";
    byId("error").textContent = `${file.name} ${reason(error)}`;
  }
}

function take(files, otherwise) {
  if (files.length) open(files[0]);
  else if (otherwise) byId("error").textContent = otherwise;
}

function listen() {
  const drop = byId("drop"), file = byId("file"), threshold = byId("threshold");
  file.addEventListener("change", () => { take(file.files); file.value = ""; });
  threshold.addEventListener("input", () => {
    byId("lowest").textContent = Number(threshold.value).toFixed(2);
    if (shown) show();
  });
  document.addEventListener("paste", (event) => {
    take(event.clipboardData.files, "There is no image in the clipboard.");
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files, "That is not a file. Save the image, then drop the file.");
  });
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing here (${response.status})`);
  return response;
}

function describe() {
  const { name, classes } = about, size = view.describe?.(about);
  byId("title").textContent = document.title = name;
  byId("about").textContent = [`${classes.length} classes`, size].filter(Boolean).join(", ");
  byId("heading").textContent = view.heading;
  byId("limits").textContent = `Up to ${LIMITS.megabytes} MB and ${LIMITS.megapixels} megapixels.`;
  byId("scores").hidden = !view.threshold;
  byId("summary").textContent = `All ${classes.length} classes`;
  byId("classes").replaceChildren(...classes.map((each) => element("li", "", each)));
}

async function start() {
  byId("notice").remove();
  byId("main").hidden = false;
  byId("status").textContent = "Loading the model …";
  try {
    about = await (await fetched("export.json")).json();
    view = VIEWS[about.task];
    describe();
    ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send
    ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
    session = await ort.InferenceSession.create(await (await fetched("model.onnx")).arrayBuffer());
    byId("file").disabled = false;
    byId("status").textContent = view.hint;
    listen();
  } catch (error) {
    byId("status").textContent = "";
    byId("error").textContent = `The model could not be loaded: ${error.message}`;
  }
  document.body.dataset.ready = "";
}

start();
