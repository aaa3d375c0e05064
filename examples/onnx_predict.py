"""Classify pictures with an exported model: onnxruntime, numpy and Pillow, nothing else.

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


def prepare(path: str, wanted: dict) -> np.ndarray:
    """A picture as the model takes it, C H W: shorter side resized, center cut, normalized."""
    image = Image.open(path).convert("L" if wanted["channels"] == 1 else "RGB")
    height, width = wanted["size"]
    shorter = int(min(height, width) / wanted["crop_pct"])
    scaled = tuple(int(shorter * side / min(image.size)) for side in image.size)
    image = image.resize(scaled, Image.Resampling[wanted["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    pixels = pixels.reshape(height, width, -1)
    normalized = (pixels - np.float32(wanted["mean"])) / np.float32(wanted["std"])
    return normalized.transpose(2, 0, 1)


def main(folder: Path, paths: list[str]) -> None:
    told = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if "model.onnx" not in told["files"]:
        sys.exit(f"{folder} holds no model.onnx: write it with atconv export RUN")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([prepare(path, told["input"]) for path in paths])
    logits = session.run(None, {"images": images})[0]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    for path, row in zip(paths, odds / odds.sum(axis=1, keepdims=True), strict=True):
        print(f"{path}: {told['classes'][row.argmax()]} {100 * row.max():.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="what atconv export wrote")
    parser.add_argument("pictures", nargs="+")
    arguments = parser.parse_args()
    try:
        main(arguments.folder, arguments.pictures)
    except OSError as error:
        sys.exit(str(error))
