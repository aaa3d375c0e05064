"""What a trained classifier says of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from atconv.data.images import read_image
from atconv.engine import run as runs

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, or why it could not be read."""

    image: str
    classes: list[str]
    probabilities: list[float]
    error: str | None = None


@torch.inference_mode()
def predict(
    run: str | Path, images: Sequence[Path], top: int = 5, batch_size: int = 32, device: str = "auto"
) -> Iterator[Prediction]:
    """Classify pictures with a run's best model, in the order given.

    Unreadable pictures give a Prediction with `error` set; the others are not affected.

    Args:
        run: the run's folder.
        images: picture files.
        top: how many classes each.
        batch_size: images in one forward pass.
        device: auto, cpu, cuda or mps.

    Raises:
        FileNotFoundError, ValueError: no such run, or it has no model.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    model, transform, classes = runs.load(run)
    where = runs.resolve_device(device)
    model.to(where)
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        inputs = [_try_read(path, transform) for path in paths]
        readable = [x for x in inputs if isinstance(x, Tensor)]
        logits = (
            model(torch.stack(readable).to(where)).float().cpu() if readable else torch.empty(0, len(classes))
        )
        values, indices = logits.softmax(1).topk(min(top, len(classes)), dim=1)
        best, order = iter(values.tolist()), iter(indices.tolist())
        for path, x in zip(paths, inputs, strict=True):
            if isinstance(x, Tensor):
                yield Prediction(str(path), [classes[i] for i in next(order)], next(best))
            else:
                yield Prediction(str(path), [], [], x)


def _try_read(path: Path, transform: runs.EvalTransform) -> Tensor | str:
    try:
        return transform(read_image(path, transform.prepare.mode))
    except (ValueError, OSError) as error:
        return str(error)
