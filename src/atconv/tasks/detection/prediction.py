"""What a trained detector finds in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from atconv.data.coco import encode_mask
from atconv.data.images import read_image
from atconv.engine import run as runs
from atconv.tasks.common.drawing import drawn_files
from atconv.tasks.detection.data import picture_tensor
from atconv.tasks.detection.model import open_detector
from atconv.tasks.detection.plots import draw_found

__all__ = ["Detections", "predict"]


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, most certain first, or why it could not be read."""

    image: str
    classes: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    """left, top, right, bottom in pixels"""
    masks: list[dict[str, Any]] | None = None
    """COCO's run lengths, from a detector that gives masks"""
    picture: str | None = None
    """the file it is drawn in"""
    error: str | None = None


@torch.inference_mode()
def predict(
    run: str | Path,
    images: Sequence[Path],
    threshold: float = 0.5,
    out: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Iterator[Detections]:
    """Find objects with a run's best model, one picture after the other, and draw them.

    Unreadable pictures give Detections with `error` set; the others are not affected.

    Args:
        run: the run's folder.
        images: picture files.
        threshold: least score.
        out: folder for the drawn pictures; default: RUN/predictions.
        device: auto, cpu, cuda or mps.

    Raises:
        FileNotFoundError, ValueError: no such run, or it has no model; or the threshold is not in 0 … 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0 … 1, got {threshold}")
    opened = open_detector(run)
    opened.model.to(runs.resolve_device(device))
    folder = Path(out) if out is not None else Path(run) / "predictions"
    files = drawn_files(images, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path, file in zip(images, files, strict=True):
        try:
            image = picture_tensor(read_image(path, opened.mode))
        except (ValueError, OSError) as error:
            yield Detections(str(path), error=str(error))
            continue
        found = opened.find(image)
        kept = found["scores"] >= threshold
        drawn = draw_found(image, found, opened.classes, threshold)
        Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(file)
        yield Detections(
            str(path),
            [opened.classes[label - 1] for label in found["labels"][kept].tolist()],
            found["scores"][kept].tolist(),
            found["boxes"][kept].tolist(),
            [encode_mask(mask.numpy() > 0.5) for mask in found["masks"][kept]] if opened.masks else None,
            str(file),
        )
