"""Classify images with an exported model: onnxruntime, numpy and Pillow, nothing else.

atconv export runs/demo
python examples/onnx_predict.py runs/demo/export runs/demo/scans/*.png
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prepare(path: str, config: dict) -> np.ndarray:
    """An image as the model expects it, C H W: shorter side resized, center crop, normalized."""
    image = Image.open(path).convert("L" if config["channels"] == 1 else "RGB")
    height, width = config["size"]
    shorter = int(min(height, width) / config["crop_pct"])
    scaled = tuple(int(shorter * length / min(image.size)) for length in image.size)
    image = image.resize(scaled, Image.Resampling[config["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    pixels = pixels.reshape(height, width, -1)
    normalized = (pixels - np.float32(config["mean"])) / np.float32(config["std"])
    return normalized.transpose(2, 0, 1)


def main(folder: Path, paths: list[str]) -> None:
    description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if "model.onnx" not in description["files"]:
        sys.exit(f"{folder} holds no model.onnx: write it with atconv export RUN")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([prepare(path, description["input"]) for path in paths])
    logits = session.run(None, {"images": images})[0]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    for path, row in zip(paths, probabilities, strict=True):
        print(f"{path}: {description['classes'][row.argmax()]} {100 * row.max():.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="what atconv export wrote")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    try:
        main(arguments.folder, arguments.images)
    except OSError as error:
        sys.exit(str(error))
