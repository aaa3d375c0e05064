"""Classify, detect or segment with an exported model: onnxruntime, numpy and Pillow, nothing else.

atconv export runs/demo
python examples/onnx_predict.py runs/demo/export runs/demo/scans/*.png
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str, mode: str) -> Image.Image:
    """Upright, of 8 bits, on white, in the mode of the model."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        peak = values[np.isfinite(values)].max(initial=0) if image.mode == "F" else 65535.0
        top = 1.0 if peak <= 1 else 255.0 if peak <= 255 else 65535.0
        levels = np.nan_to_num(np.rint(values * (255.0 / top)))
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def prepare(path: str, config: dict) -> np.ndarray:
    """An image as the model expects it, C H W: the steps of export.json's inputs.images.preparation."""
    image = read(path, "L" if config["channels"] == 1 else "RGB")
    if "size" in config:  # a classifier; other models resize and normalize themselves
        image = cut(image, config)
    pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) / 255
    if "mean" in config:
        pixels = (pixels - np.float32(config["mean"])) / np.float32(config["std"])
    return pixels.transpose(2, 0, 1)


def cut(image: Image.Image, config: dict) -> Image.Image:
    """Resized, and cut from the center."""
    height, width = config["size"]
    shorter = int(min(height, width) / config["crop_pct"])
    scaled = tuple(int(shorter * length / min(image.size)) for length in image.size)
    image = image.resize(scaled, Image.Resampling[config["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def describe(outputs: dict, description: dict) -> Iterator[str]:
    """What a model says of one image, line by line."""
    classes, about = description["classes"], description["outputs"].get("logits", {})
    if about.get("activation") == "sigmoid":  # several labels an image: those from their thresholds on
        probabilities = 1 / (1 + np.exp(-outputs["logits"][0]))
        order = [i for i in np.argsort(-probabilities) if probabilities[i] >= about["thresholds"][i]]
        yield ", ".join(f"{classes[i]} {100 * probabilities[i]:.1f} %" for i in order) or "none"
    elif "logits" in outputs:
        logits = outputs["logits"][0]
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = probabilities.argmax()
        yield f"{classes[best]} {100 * probabilities[best]:.1f} %"
    elif "boxes" in outputs:
        for box, score, label in zip(outputs["boxes"], outputs["scores"], outputs["labels"], strict=True):
            if score >= 0.5:
                yield f"{classes[label]} {score:.2f}, {' '.join(f'{x:.0f}' for x in box)}"
    else:
        labels, counts = np.unique(outputs["mask"], return_counts=True)
        for i in np.argsort(-counts, kind="stable"):
            yield f"{classes[labels[i]]} {100 * counts[i] / counts.sum():.1f} % of the image"


def main(folder: Path, paths: list[str]) -> None:
    description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if "model.onnx" not in description["files"]:
        sys.exit(f"{folder} holds no model.onnx: write it with atconv export RUN")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    readable = 0
    for path in paths:
        try:
            image = prepare(path, description["inputs"]["images"])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            print(f"{path}: not a readable image ({error})", file=sys.stderr)
            continue
        readable += 1
        outputs = dict(zip(names, session.run(None, {"images": image[None]}), strict=True))
        for line in describe(outputs, description):
            print(f"{path}: {line}")
    if not readable:
        sys.exit("none of the images could be read")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="what atconv export wrote")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    try:
        main(arguments.folder, arguments.images)
    except OSError as error:
        sys.exit(str(error))
