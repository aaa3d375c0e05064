"""Sample images with an exported generator: onnxruntime, numpy and Pillow, nothing else.

atconv export runs/digits-sit
python examples/onnx_generate.py runs/digits-sit/export samples --labels 3 7
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

Velocity = Callable[[float, np.ndarray], np.ndarray]


def solve(velocity: Velocity, noise: np.ndarray, start: float, end: float, steps: int) -> np.ndarray:
    """From noise to data: dx = velocity(t, x) dt by Heun's method, two evaluations a step."""
    x, times = noise, np.linspace(start, end, steps + 1)
    for here, there in pairwise(times):
        slope = velocity(here, x)
        ahead = velocity(there, x + np.float32(there - here) * slope)
        x = x + np.float32((there - here) / 2) * (slope + ahead)
    return x


def make_velocity(
    session: onnxruntime.InferenceSession, labels: list[int], null_label: int | None, guidance: float
) -> Velocity:
    """The file's velocity for samples of these classes. With guidance other than 1 it is
    unconditional + guidance·(conditional − unconditional), where the null label is unconditional."""
    takes_labels = any(each.name == "labels" for each in session.get_inputs())

    def evaluate(t: float, x: np.ndarray, of: list[int]) -> np.ndarray:
        inputs = {"x": x, "t": np.full(len(x), t, np.float32)}
        if takes_labels:
            inputs["labels"] = np.array(of, np.int64)
        return session.run(None, inputs)[0]

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        conditional = evaluate(t, x, labels)
        if guidance == 1:
            return conditional
        unconditional = evaluate(t, x, [null_label] * len(x))
        return unconditional + np.float32(guidance) * (conditional - unconditional)

    return velocity


def sample(
    folder: Path, noise: np.ndarray, labels: list[int], steps: int = 50, guidance: float = 1.0
) -> np.ndarray:
    """Samples B C H W, in the model's units, from noise of that shape."""
    description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    null_label = description["inputs"].get("labels", {}).get("null_label")
    if guidance != 1 and null_label is None:
        sys.exit("this model has no null label, which guidance needs: leave --guidance out")
    velocity = make_velocity(session, labels, null_label, guidance)
    return solve(velocity, noise, description["sampling"]["start"], description["sampling"]["end"], steps)


def main(folder: Path, out: Path, labels: list[int] | None, count: int, seed: int, **options: float) -> None:
    description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    inputs, classes = description["inputs"], description["classes"]
    labels = (labels or list(range(len(classes)))) if "labels" in inputs else [0] * count
    if "labels" in inputs and not all(0 <= label < len(classes) for label in labels):
        sys.exit(f"labels are 0 … {len(classes) - 1}, got {labels}")
    shape = (len(labels), inputs["x"]["channels"], *inputs["x"]["size"])
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    samples = sample(folder, noise, labels, **options)
    out.mkdir(parents=True, exist_ok=True)
    if not description["sampling"]["space"].startswith("pixels"):
        np.save(out / "latents.npy", samples)
        print(f"{out / 'latents.npy'}: {description['sampling']['space']} decodes them")
        return
    pixels = np.rint((samples.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(out / f"{i}.png")
    print(f"{len(pixels)} images in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="what atconv export wrote")
    parser.add_argument("out", type=Path, help="folder of images to write")
    parser.add_argument("--labels", type=int, nargs="+", help="a class for each image; default: each once")
    parser.add_argument("--count", type=int, default=4, help="images of a model without classes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
