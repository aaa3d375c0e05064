"""The model of a run: built, given its starting weights, frozen where asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from rich.console import Console
from torch import nn

from atconv.engine.recipes import refuse_contradictions
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.models.attnet import AttNet
from atconv.models.release import load_release
from atconv.tasks.classification.config import ClassificationConfig, read_config

__all__ = ["inherit_config", "make_model"]


def make_model(config: ClassificationConfig, classes: int, console: Console, fresh: bool = True) -> nn.Module:
    """The model of a configuration, seeded; with its starting weights where it is `fresh`.

    Raises:
        ValueError: unknown model, unknown arguments, or weights that do not fit.
    """
    arguments = {**config.model_args, "num_classes": classes, "in_chans": config.in_chans}
    if config.drop_path_rate:
        arguments["drop_path_rate"] = config.drop_path_rate
    if config.drop_rate:
        arguments["drop_rate"] = config.drop_rate
    if not timm.is_model(config.model):
        close = ", ".join(timm.list_models("attnet*"))
        raise ValueError(f"timm knows no model {config.model!r}; AttNet's are {close}")
    with seeded(derive_seed("init", config.seed)):
        try:
            model: Any = timm.create_model(config.model, **arguments)
        except TypeError as error:
            raise ValueError(
                f"{config.model} does not take model_args {config.model_args}: {error}"
            ) from error
    if config.weights is not None and fresh:
        _load_weights(model, config, console)
    if config.freeze_backbone:
        _freeze_backbone(model)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except AssertionError as error:
            raise ValueError(f"{config.model} has no gradient checkpointing: {error}") from error
    return model


def inherit_config(config: ClassificationConfig, chosen: Collection[str] = ()) -> ClassificationConfig:
    """Where weights come from another run, its model, channels and normalization come with them, and its
    input size, crop and interpolation, unless they are among the `chosen` options.

    Raises:
        ValueError: an option was chosen that contradicts the run's model.
    """
    if config.weights is None or not Path(config.weights).is_dir():
        return config
    source = read_config(Run.open(config.weights))
    fixed = ("model", "model_args", "in_chans", "mean", "std")
    refuse_contradictions(config, source, fixed, chosen)
    taken = [*fixed, *(name for name in ("image_size", "crop_pct", "interpolation") if name not in chosen)]
    return replace(config, **{name: getattr(source, name) for name in taken})


def _load_weights(model: nn.Module, config: ClassificationConfig, console: Console) -> None:
    path = Path(str(config.weights))
    if path.is_dir():
        run = Run.open(path)
        state = run.read_weights()
        own = model.state_dict()
        fresh = [name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape]
        state.update({name: own[name] for name in fresh})
        model.load_state_dict(state)
        console.print(
            f"{config.model} starts from {path}, whose arguments, channels and normalization it takes"
        )
        if fresh:
            console.print(f"other classes than in {path}: {', '.join(fresh)} start fresh")
    elif isinstance(model, AttNet):
        load_release(model, path, "ema" if config.weights_ema else "model")
    else:
        raise ValueError(f"weights for {config.model} come from a run's folder; {path} is not one")


def _freeze_backbone(model: Any) -> None:
    """Leave only the head trainable; frozen BatchNorm keeps its statistics too."""
    model.requires_grad_(False)
    head = model.head if isinstance(model, AttNet) else model.get_classifier()
    head.requires_grad_(True)
