"""The detector of a run: built from its configuration, and opened from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from atconv.data.images import Mode, PrepareImage
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.models.detectors import detector
from atconv.models.normalization import normalization
from atconv.tasks.common.annotated_config import refuse_own_options
from atconv.tasks.common.annotated_task import starting_weights
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.data import picture_tensor

__all__ = ["Detector", "describe", "make_model", "open_detector"]


class PictureTransform:
    """Any PIL image → C H W in 0…1, as a detector reads it; it resizes and normalizes itself."""

    def __init__(self, in_chans: int) -> None:
        self.prepare = PrepareImage(in_chans)

    def __call__(self, image: Image.Image) -> Tensor:
        return picture_tensor(self.prepare(image))


@dataclass(frozen=True)
class Detector:
    """A trained detector, in eval mode, with what is needed to use it."""

    model: nn.Module
    transform: PictureTransform
    classes: list[str]
    masks: bool

    @property
    def mode(self) -> Mode:
        """How pictures are read."""
        return self.transform.prepare.mode

    def find(self, image: Tensor) -> dict[str, Tensor]:
        """What is in a picture, C H W in 0…1: boxes (N 4), labels, scores, and masks (N H W of 0…1)."""
        device = next(self.model.parameters()).device
        found = {name: value.cpu() for name, value in self.model([image.to(device)])[0].items()}
        return found | ({"masks": found["masks"][:, 0]} if self.masks else {})


def make_model(config: DetectionConfig, classes: int, console: Console, fresh: bool) -> nn.Module:
    """The detector of a configuration, seeded; its backbone with its starting weights where it is `fresh`.

    Raises:
        ValueError: unknown model or arguments, or weights that do not fit.
    """
    weights = starting_weights(config, fresh, console)
    with seeded(derive_seed("init", config.seed)):
        return _build(_arguments(config, classes), state_dict=weights)


def describe(config: DetectionConfig, classes: list[str]) -> dict[str, Any]:
    """config.json of a run."""
    return {"task": "detection", "label_names": classes, "detector": _arguments(config, len(classes))}


def open_detector(path: str | Path) -> Detector:
    """The best model of a detection run.

    Raises:
        FileNotFoundError, ValueError: no such run, none of detection, or it has no model yet.
    """
    run = Run.open(path)
    state = run.read_weights()
    try:
        told = json.loads(run.model_config.read_text())
        arguments, classes = told["detector"], list(told["label_names"])
        in_chans, masks = arguments["in_chans"], arguments["architecture"] == "mask_rcnn"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run of atconv detect train: {error} in its config.json") from error
    model = _build(arguments)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the model in {path} is damaged: {str(error).splitlines()[0]}") from error
    return Detector(model.eval(), PictureTransform(in_chans), classes, masks)


def _build(arguments: dict[str, Any], **further: Any) -> nn.Module:
    """In the layout that convolutions run fastest in."""
    try:
        return detector(**arguments, **further).to(memory_format=torch.channels_last)
    except TypeError as error:
        raise ValueError(f"detector_args do not fit {arguments['architecture']}: {error}") from error


def _arguments(config: DetectionConfig, classes: int) -> dict[str, Any]:
    """Arguments of `detector`, as JSON holds them."""
    mean, std = normalization(config.in_chans, config.mean, config.std)
    own = {
        "backbone": config.model,
        "num_classes": classes,
        "architecture": config.architecture,
        "in_chans": config.in_chans,
        "backbone_args": config.backbone_args,
        "levels": config.levels,
        "channels": config.channels,
        "anchor_scale": config.anchor_scale,
        "min_size": list(config.min_size),
        "max_size": config.max_size,
        "mean": list(mean),
        "std": list(std),
    }
    refuse_own_options("detector_args", config.detector_args, own)
    return own | config.detector_args
