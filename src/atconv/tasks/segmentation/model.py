"""The segmenter of a run: built from its configuration, and opened from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.models.segmenters import segmenter
from atconv.tasks.common.annotated_config import refuse_own_options
from atconv.tasks.common.annotated_task import starting_weights
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import SegmentTransform

__all__ = ["OpenSegmenter", "describe", "make_model", "open_segmenter"]


@dataclass(frozen=True)
class OpenSegmenter:
    """A trained segmenter, in eval mode, with what is needed to use it."""

    model: nn.Module
    transform: SegmentTransform
    classes: list[str]
    flip_tta: bool
    """classify the mean of a picture and its mirror image"""

    def classify(self, inputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Class indices of pictures of one size (height, width): B C H W of inputs → B height width."""
        inputs = inputs.to(next(self.model.parameters()).device)
        scores = self.model(inputs).float()
        if self.flip_tta:
            mirrored = self.model(inputs.flip(3)).float().flip(3)
            scores = scores.softmax(1) + mirrored.softmax(1)
        return self.transform.undo(scores, size).argmax(1).cpu()


def make_model(config: SegmentationConfig, classes: int, console: Console, fresh: bool) -> nn.Module:
    """The segmenter of a configuration, seeded; its backbone with its starting weights where it is `fresh`.

    Raises:
        ValueError: unknown model or arguments, or weights that do not fit.
    """
    weights = starting_weights(config, fresh, console)
    with seeded(derive_seed("init", config.seed)):
        return _build(_arguments(config, classes), weights)


def describe(config: SegmentationConfig, model: Any, classes: list[str]) -> dict[str, Any]:
    """config.json of a run. `smp.from_pretrained(RUN)` opens it too, where atconv has been imported: it
    skips names that begin with _."""
    transform = SegmentTransform(config.in_chans, config.short_side, config.mean, config.std)
    told = {
        "task": "segmentation",
        "label_names": classes,
        "segmenter": _arguments(config, len(classes)),
        "transform": {"short_side": config.short_side, "mean": transform.mean, "std": transform.std},
        "flip_tta": config.flip_tta,
    }
    return {**model.config, "_model_class": type(model).__name__, "_atconv": told}


def open_segmenter(path: str | Path, flip_tta: bool | None = None) -> OpenSegmenter:
    """The best model of a segmentation run.

    Args:
        path: the run's folder.
        flip_tta: classify the mean of a picture and its mirror image; default: as the run was configured.

    Raises:
        FileNotFoundError, ValueError: no such run, none of segmentation, or it has no model yet.
    """
    run = Run.open(path)
    state = run.read_weights()
    try:
        told = json.loads(run.model_config.read_text())["_atconv"]
        arguments, classes = told["segmenter"], list(told["label_names"])
        transform = SegmentTransform(arguments["in_chans"], **told["transform"])
        if flip_tta is None:
            flip_tta = told.get("flip_tta", False)  # runs trained before there was the option do not tell
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a run of atconv segment train: {error} in its config.json"
        ) from error
    model = _build(arguments)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the model in {path} is damaged: {str(error).splitlines()[0]}") from error
    return OpenSegmenter(model.eval(), transform, classes, flip_tta)


def _build(arguments: dict[str, Any], weights: dict[str, Tensor] | None = None) -> nn.Module:
    """In the layout that convolutions run fastest in."""
    options = {name: value for name, value in arguments.items() if name != "segmenter_args"}
    model = segmenter(**options, state_dict=weights, **arguments["segmenter_args"])
    return model.to(memory_format=torch.channels_last)


def _arguments(config: SegmentationConfig, classes: int) -> dict[str, Any]:
    """Arguments of `segmenter`, as JSON holds them."""
    own = {
        "backbone": config.model,
        "num_classes": classes,
        "architecture": config.architecture,
        "in_chans": config.in_chans,
        "backbone_args": config.backbone_args,
    }
    refuse_own_options("segmenter_args", config.segmenter_args, [*own, "state_dict"])
    return own | {"segmenter_args": config.segmenter_args}
