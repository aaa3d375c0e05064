"""The network of a configuration, with the weights that it starts from."""

from __future__ import annotations

import logging
from pathlib import Path

from atconv.engine.rng import derive_seed, seeded
from atconv.models.release import load_release, read_checkpoint
from atconv.models.sit import SiT, create_sit
from atconv.tasks.common.start import load_from_run, log_difference
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.registry import open_run

__all__ = ["build_sit", "check_weights", "make_model"]

logger = logging.getLogger(__name__)


def make_model(
    config: GenerationConfig, classes: int, shape: tuple[int, int, int], load_weights: bool = True
) -> SiT:
    """The SiT of a configuration, seeded, with the weights that it starts from.

    Raises:
        ValueError: unknown model or arguments, a size the patch does not divide, or weights that do not fit.
    """
    with seeded(derive_seed("init", config.seed)):
        sit = build_sit(config, classes, shape)
    if config.checkpoint is not None and load_weights:
        _load_weights(sit, config, shape)
    if config.grad_checkpointing:
        sit.enable_gradient_checkpointing()
    return sit


def build_sit(config: GenerationConfig, classes: int, shape: tuple[int, int, int]) -> SiT:
    """A newly initialized SiT for samples of this shape."""
    arguments = {
        "learn_sigma": False,
        **config.model_args,
        "in_channels": shape[0],
        "num_classes": classes,
        "label_dropout": config.label_dropout,
    }
    try:
        sit = create_sit(config.model, **arguments)
    except TypeError as error:
        raise ValueError(f"{config.model} does not take model_args {config.model_args}: {error}") from error
    patch = sit.patch_size
    if shape[1] % patch or shape[2] % patch:
        raise ValueError(
            f"patches of {patch} do not divide samples of {shape[1]} × {shape[2]}: change image_size"
        )
    return sit


def check_weights(path: Path) -> None:
    """Raise FileNotFoundError or ValueError where there are no weights, or they are damaged."""
    if path.is_dir():
        GenerationPredictor.open(open_run(path))
    else:
        read_checkpoint(path)


def _load_weights(sit: SiT, config: GenerationConfig, shape: tuple[int, int, int]) -> None:
    path = Path(str(config.checkpoint))
    if not path.is_dir():
        load_release(sit, path)
        return
    predictor = GenerationPredictor.open(open_run(path))
    load_from_run(sit, predictor.pipeline.transformer.state_dict(), config)
    there, here = list(predictor.pipeline.config.sample_size), list(shape[1:])
    log_difference(config, "height and width of samples", there, here, "the weights stay as they are")
