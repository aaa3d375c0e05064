import * as ort from "./ort.wasm.bundle.min.mjs";
import { decode, prepare } from "./prepare.js";

const TOP = 5;
const byId = (id) => document.getElementById(id);
let about, session, latest = 0;

/** Class scores of an image file, before softmax, and its pixels. */
export async function predict(file) {
  const pixels = await decode(file);
  const input = about.inputs.images, shape = [1, input.channels, ...input.size];
  const images = new ort.Tensor("float32", prepare(pixels, input), shape);
  const { logits } = await session.run({ images });
  return { logits: Array.from(logits.data), pixels };
}

function softmax(logits) {
  const top = Math.max(...logits), powers = logits.map((x) => Math.exp(x - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / total);
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function showResults(logits) {
  const { activation, thresholds } = about.outputs.logits; // thresholds: an image may be of several classes
  const shares = activation === "sigmoid" ? logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax(logits);
  const ranked = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
  const best = thresholds ? ranked.filter((i) => shares[i] >= thresholds[i]) : ranked.slice(0, TOP);
  byId("results").replaceChildren(...best.map((i) => {
    const row = element("li", ""), track = element("div", "track"), bar = element("div", "bar");
    bar.style.width = `${100 * shares[i]}%`;
    track.append(bar);
    const share = element("span", "share", `${(100 * shares[i]).toFixed(1)} %`);
    row.append(element("span", "name", about.classes[i]), share, track);
    return row;
  }));
}

function showImage({ width, height, data }, name) {
  const canvas = byId("preview");
  Object.assign(canvas, { width, height, hidden: false });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(data), width, height), 0, 0);
  canvas.setAttribute("aria-label", name);
  byId("name").textContent = `${name}, ${width} × ${height}`;
}

function clear(status = "") {
  byId("error").textContent = "";
  byId("status").textContent = status;
  byId("results").replaceChildren();
}

async function classify(file) {
  const turn = ++latest;
  clear("Classifying …");
  await new Promise((resolve) => setTimeout(resolve, 20)); // the browser shows that first
  try {
    const { logits, pixels } = await predict(file);
    if (turn !== latest) return;
    showImage(pixels, file.name);
    showResults(logits);
    byId("status").textContent = "";
  } catch (error) {
    if (turn !== latest) return;
    clear();
    byId("preview").hidden = true;
    byId("name").textContent = "";
    byId("error").textContent = error instanceof DOMException
      ? `${file.name} is not an image that this browser reads. PNG, JPEG, WebP, GIF and AVIF files are.`
      : `${file.name} could not be classified: ${error.message}`;
  }
}

function take(files, otherwise) {
  if (files.length) classify(files[0]);
  else if (otherwise) byId("error").textContent = otherwise;
}

function listen() {
  const drop = byId("drop"), file = byId("file");
  file.addEventListener("change", () => { take(file.files); file.value = ""; });
  document.addEventListener("paste", (event) => {
    take(event.clipboardData.files, "There is no image in the clipboard.");
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
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

async function start() {
  byId("notice").remove();
  byId("main").hidden = false;
  byId("file").disabled = true;
  byId("status").textContent = "Loading the model …";
  try {
    about = await (await fetched("export.json")).json();
    byId("title").textContent = document.title = about.name;
    const [height, width] = about.inputs.images.size;
    byId("about").textContent = `${about.classes.length} classes, images of ${height} × ${width} pixels`;
    byId("summary").textContent = `All ${about.classes.length} classes`;
    byId("classes").replaceChildren(...about.classes.map((name) => element("li", "", name)));
    ort.env.wasm.numThreads = 1; // more need headers that plain web servers do not send
    ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
    session = await ort.InferenceSession.create(await (await fetched("model.onnx")).arrayBuffer());
    byId("file").disabled = false;
    byId("status").textContent = "Choose an image to see its classes.";
    listen();
  } catch (error) {
    byId("status").textContent = "";
    byId("error").textContent = `The model could not be loaded: ${error.message}`;
  }
  document.body.dataset.ready = "";
}

start();
