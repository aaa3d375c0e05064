"""The model of a run: built, given its starting weights, frozen where asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint
from torch import nn

from atconv.engine.recipes import read_config
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.trainer import set_training_mode
from atconv.models.attnet import VARIANTS, AttNet
from atconv.models.backbone import check_model_name, min_batch
from atconv.models.release import load_release
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.unfreezing import head_of
from atconv.tasks.common.start import load_from_run, log_difference

__all__ = ["check_model", "make_model", "open_named_model"]

logger = logging.getLogger(__name__)


def check_model(config: ClassificationConfig, load_weights: bool) -> int:
    """Fail fast: raise for all that is wrong with a model and its starting weights, before data is read.

    Returns:
        images that a micro-batch of its training needs.

    Raises:
        ValueError: as `make_model`, or the model does not take images of the size.
    """
    with torch.device("meta"):
        model = make_model(config, 2, load_weights=False)
    info: Any = getattr(model, "feature_info", None) or [{"reduction": 1}]
    stride = info[-1]["reduction"]
    if config.image_size < stride:
        logger.warning(
            "image_size %d is smaller than the stride of %s, %d: its last maps hold one value. Give larger "
            "images, or a smaller stride, such as --model-args '{stem_stride: 1}' of AttNet",
            config.image_size, config.model, stride,
        )  # fmt: skip
    set_training_mode(model, config.freeze_bn)
    needed = min_batch(model, config.model, (config.in_chans, config.image_size, config.image_size))
    if config.checkpoint is not None and load_weights:
        run = config.source_run()
        if run is not None:
            run.read_weights()
        else:
            make_model(config, 0)
    return needed


def make_model(config: ClassificationConfig, classes: int, load_weights: bool = True) -> nn.Module:
    """The model of a configuration, seeded; with its starting weights if asked.

    Raises:
        ValueError: unknown model, unknown arguments, or weights that do not fit.
    """
    arguments = {**config.model_args, "num_classes": classes, "in_chans": config.in_chans}
    if config.drop_path_rate:
        arguments["drop_path_rate"] = config.drop_path_rate
    if config.drop_rate:
        arguments["drop_rate"] = config.drop_rate
    check_model_name(config.model)
    with seeded(derive_seed("init", config.seed)):
        try:
            model: Any = timm.create_model(config.model, **arguments)
        except TypeError as error:
            raise ValueError(
                f"{config.model} does not take model_args {config.model_args}: {error}"
            ) from error
    if config.checkpoint is not None and load_weights:
        _load_weights(model, config)
    if config.freeze_backbone:
        model.requires_grad_(False)  # frozen BatchNorm keeps its statistics too
        head_of(model).requires_grad_(True)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except AssertionError as error:
            raise ValueError(f"{config.model} has no gradient checkpointing: {error}") from error
    return model


def open_named_model(name: str, weights: str | None = None) -> Any:
    """A model by timm's name, with trained weights: timm's, or those of a file. Nothing is unpickled.

    Raises:
        ValueError: no such model or weights, or they do not fit.
    """
    check_model_name(name)
    if weights is None and name in VARIANTS:
        raise ValueError(f"{name} has no weights of its own in timm: give a file of them, or a run's folder")
    try:
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"no such file: {weights}")  # timm's error has no text
        model: Any = timm.create_model(name, pretrained=weights is None)
        if isinstance(model, AttNet):
            load_release(model, str(weights))
        elif weights is not None:
            load_checkpoint(model, weights, weights_only=True)
    except Exception as error:  # no network, a wrong file: timm raises many kinds
        raise ValueError(f"{name} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    return model


def _load_weights(model: nn.Module, config: ClassificationConfig) -> None:
    path, run = Path(str(config.checkpoint)), config.source_run()
    if run is not None:
        load_from_run(model, run.read_weights(), config)
        size = read_config(run, ClassificationConfig, "classification").image_size
        log_difference(config, "image_size", size, config.image_size, "the weights stay as they are")
    elif isinstance(model, AttNet):
        load_release(model, path, config.use_ema)
    else:
        raise ValueError(f"a checkpoint for {config.model} is a run's folder; {path} is not one")
