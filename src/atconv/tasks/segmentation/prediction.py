"""What a trained segmenter says of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from atconv.data.images import read_image
from atconv.engine import run as runs
from atconv.tasks.common.drawing import drawn_files
from atconv.tasks.segmentation.model import open_segmenter
from atconv.tasks.segmentation.plots import draw_found

__all__ = ["Segments", "predict"]


@dataclass(frozen=True)
class Segments:
    """What was found in one picture, or why it could not be read."""

    image: str
    shares: dict[str, float] = field(default_factory=dict)
    """share of the picture by class, greatest first; classes that do not occur are left out"""
    mask: str | None = None
    """PNG of class indices, as large as the picture"""
    picture: str | None = None
    """the file it is drawn in"""
    error: str | None = None


@torch.inference_mode()
def predict(
    run: str | Path,
    images: Sequence[Path],
    out: str | Path | None = None,
    flip_tta: bool | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Iterator[Segments]:
    """Segment pictures with a run's best model, one after the other, and draw them.

    Unreadable pictures give Segments with `error` set; the others are not affected.

    Args:
        run: the run's folder.
        images: picture files.
        out: folder for NAME.png, drawn, and masks/NAME.png, class indices; default: RUN/predictions.
        flip_tta: classify the mean of every picture and its mirror image; default: as the run was configured.
        device: auto, cpu, cuda or mps.

    Raises:
        FileNotFoundError, ValueError: no such run, or it has no model.
    """
    opened = open_segmenter(run, flip_tta)
    opened.model.to(runs.resolve_device(device))
    folder = Path(out) if out is not None else Path(run) / "predictions"
    files, masks = drawn_files(images, folder), drawn_files(images, folder / "masks")
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for path, file, mask in zip(images, files, masks, strict=True):
        try:
            image = read_image(path, opened.transform.mode)
        except (ValueError, OSError) as error:
            yield Segments(str(path), error=str(error))
            continue
        found = opened.classify(opened.transform(image)[None], (image.height, image.width))[0]
        Image.fromarray(found.byte().numpy()).save(mask)
        draw_found(image, found, opened.classes, file)
        indices, counts = found.unique(return_counts=True)
        order = counts.argsort(descending=True)
        shares = {opened.classes[int(indices[i])]: int(counts[i]) / found.numel() for i in order}
        yield Segments(str(path), shares, str(mask), str(file))
