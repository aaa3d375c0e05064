"""What a run takes from the run that it starts from, and what is said of the differences."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from atconv.engine.reading import read_json
from atconv.engine.run import Run
from atconv.io import first_few
from atconv.tasks.common.model_options import ModelOptions

__all__ = ["classes_of", "inherit", "load_from_run", "log_difference", "log_other_classes"]

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=ModelOptions)


def inherit(config: C, source: Any, names: Collection[str], chosen: Collection[str]) -> C:
    """A configuration with options of the run named as its `checkpoint`.

    Args:
        config: of the new run.
        source: of that run.
        names: the options that come with the weights.
        chosen: options that must not change.

    Raises:
        ValueError: a chosen option is another than that run's.
    """
    for name in names:
        if name in chosen and getattr(config, name) != getattr(source, name):
            option, run = name.replace("_", "-"), config.checkpoint
            raise ValueError(
                f"--{option} {getattr(config, name)} contradicts --checkpoint {run}, whose {option} is "
                f"{getattr(source, name)}: leave --{option} out"
            )
    for name in sorted({"in_chans", "image_size"} & set(names)):
        there = getattr(source, name)
        log_difference(config, name, there, getattr(config, name), f"{there} is taken with the weights")
    return replace(config, **{name: getattr(source, name) for name in names})


def load_from_run(model: nn.Module, state: Mapping[str, Tensor], config: ModelOptions) -> None:
    """Load the tensors of a run that are of the model's shapes, and say how many those are."""
    own = model.state_dict()
    new = [name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape]
    model.load_state_dict({**state, **{name: own[name] for name in new}})
    text = f"{config.model} starts from {config.checkpoint}: {len(state) - len(new)} tensors are kept"
    text += f"; newly initialized, being of another shape there: {', '.join(new)}" if new else ""
    logger.info("%s; in_chans %d as there", text, config.in_chans)


def log_difference(config: ModelOptions, what: str, there: Any, here: Any, done: str) -> None:
    """Say what differs from the run that weights come from, and what is done about it."""
    if there != here:
        logger.info("%s: %s in %s, %s here; %s", what, there, config.checkpoint, here, done)


def log_other_classes(config: ModelOptions, classes: Sequence[str], part: str) -> None:
    """Say that the run which weights come from has another number of classes; warn where it has as many, but
    others or in another order, so that all weights are kept.

    Args:
        part: of the model, which depends on their number.
    """
    run = config.source_run()
    if run is None:
        return
    there = classes_of(run)
    if there and len(there) != len(classes):
        log_difference(config, "classes", len(there), len(classes), f"{part} is newly initialized")
    elif there and list(there) != list(classes):
        logger.warning(
            "%s was trained on as many classes, but others or in another order: %s there, %s here. For these "
            "%s is kept as a start",
            *(run.path, first_few(there), first_few(classes), part),
        )


def classes_of(run: Run) -> Sequence[str]:
    """Names of a run's classes, whatever its task."""
    index = run.path / "model_index.json"  # of generation
    schema = dict.fromkeys(("label_names", "class_names"), list[str] | None)
    content = read_json(index if index.is_file() else run.model_config, schema, inside="_atconv")
    names: Sequence[str] = content.get("label_names") or content.get("class_names") or []
    return names
