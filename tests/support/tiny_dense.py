"""Annotated images and runs that are small enough for tests."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atconv.data.boxes.split import BoxSplit
from atconv.tasks import train
from atconv.tasks.detection import DetectionConfig
from atconv.tasks.segmentation import SegmentationConfig
from support.plots import empty_plots
from support.tiny import flag

empty_plots("detection.predictor.plot_split", "segmentation.predictor.plot_split")

BACKBONE = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "mlp_ratios": [2, 2, 2, 2]}
CLASSES = ["dark", "bright"]
SIZES = ((40, 56), (56, 40), (48, 48))  # height, width; no multiples of 32

_LOOP = {
    "in_chans": 1,
    "epochs": 2,
    "batch_size": 4,
    "base_batch_size": 4,
    "lr": 2e-3,
    "warmup_epochs": 0.0,
    "workers": 0,
    "device": "cpu",
    "tracker": "none",
    "model_args": BACKBONE,
}
DETECT: dict[str, Any] = {
    **_LOOP,
    "channels": 16,
    "anchor_scale": 4.0,
    "min_size": (40, 48),
    "max_size": 72,
    "detector_args": {
        "rpn_batch_size_per_image": 16,
        "box_batch_size_per_image": 16,
        "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 5,
    },
}
SEGMENT: dict[str, Any] = {
    **_LOOP,
    "segmenter_args": {"decoder_channels": [16, 16, 8, 8, 8]},
    "short_side": 40,
    "scales": (0.7, 1.4),
    "crop": (32, 64),
}


def annotated_folder(root: Path, train: int = 12, val: int = 4, seed: int = 0) -> Path:
    """Dark and bright boxes on gray images of several shapes, in the layout that both commands read."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 7, "name": CLASSES[0]}, {"id": 3, "name": CLASSES[1]}]
    for split, count in (("train", train), ("val", val)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            pixels = np.full((height, width), 120, np.uint8) + rng.integers(
                0, 9, (height, width), dtype=np.uint8
            )
            mask = np.zeros((height, width), np.uint8)
            for label in range(2):
                h, w = rng.integers(12, 24, 2)
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                pixels[top : top + h, left : left + w] = 20 if label == 0 else 240
                mask[top : top + h, left : left + w] = 1 + label
                x, y, w, h = (int(v) for v in (left, top, w, h))
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": 100 + i,
                        "category_id": categories[label]["id"],
                        "bbox": [x, y, w, h],
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")
            content["images"].append(
                {"id": 100 + i, "file_name": f"{i}.png", "width": width, "height": height}
            )
        (root / f"{split}.json").write_text(json.dumps(content))
    (root / "classes.txt").write_text("\n".join(["ground", *CLASSES]) + "\n")
    return root


def annotations(split: BoxSplit) -> list[Any]:
    """All that a split says of its images."""
    return [(n, split.turn(i), split.size(i), split.boxes(i)) for i, n in enumerate(split.names)]


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def shared_data() -> Path:
    """Annotated images that tests read and never write to."""
    return annotated_folder(_folder() / "data")


def detect(run: Path, data: Path | None = None, **changes: Any) -> Path:
    """Train a detector in this process."""
    config = DetectionConfig(**{"data": str(data or shared_data()), **DETECT, **changes})
    return train(config, run)


def segment(run: Path, data: Path | None = None, **changes: Any) -> Path:
    """Train a segmenter in this process."""
    config = SegmentationConfig(**{"data": str(data or shared_data()), **SEGMENT, **changes})
    return train(config, run)


@functools.cache
def detection_run() -> Path:
    """A finished run that tests read and never write to."""
    return detect(_folder() / "detection")


@functools.cache
def segmentation_run() -> Path:
    """A finished run that tests read and never write to."""
    return segment(_folder() / "segmentation")


def options(values: dict[str, Any], **changes: Any) -> list[str]:
    """Values as options of a command."""
    return [flag(name.replace("_", "-"), value) for name, value in (values | changes).items()]
