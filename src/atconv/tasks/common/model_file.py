"""The model of a run, as far as several tasks read it, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm

from atconv.engine.options import CropShare, Pixels, PositiveInt, Share, check_value
from atconv.engine.reading import check_weights, naming_damage, read_json
from atconv.engine.run import Run
from atconv.models.backbone import check_model_name
from atconv.models.normalization import normalization

__all__ = ["check_classes", "check_normalization", "open_classifier", "read_classifier"]

_CLASSIFIER: dict[str, Any] = {
    "architecture": str,
    "label_names": list[str],
    "num_classes": PositiveInt,
    "pretrained_cfg": dict,
    "model_args": dict | None,
    "problem_type": str | None,
    "thresholds": list[Share] | None,
}
_PRETRAINED: dict[str, Any] = {
    "input_size": tuple[PositiveInt, Pixels, Pixels],
    "interpolation": Literal["nearest", "bilinear", "bicubic"],
    "crop_pct": CropShare,
    "crop_mode": Literal["center"],
    "mean": list[float],
    "std": list[float],
    "num_classes": PositiveInt,
}


def read_classifier(file: Path) -> dict[str, Any]:
    """config.json of a classification run, as timm reads it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged: a value of another type or range, or values that contradict each other.
    """
    content = read_json(file, _CLASSIFIER)
    pretrained, classes = content["pretrained_cfg"], content["label_names"]
    with naming_damage(file):
        for name, kind in _PRETRAINED.items():
            check_value(f"{name} in pretrained_cfg", pretrained.get(name), kind)
        check_model_name(content["architecture"])
        check_classes(classes, content["num_classes"])
        check_classes(classes, pretrained["num_classes"])
        channels, given = content.get("model_args", {}).get("in_chans", 3), pretrained["input_size"][0]
        if given != channels:
            raise ValueError(f"input_size in pretrained_cfg has {given} channels, the model {channels}")
        check_normalization(channels, pretrained["mean"], pretrained["std"])
        thresholds = content.get("thresholds", classes)
        if len(thresholds) != len(classes):
            raise ValueError(f"{len(thresholds)} thresholds for {len(classes)} classes")
    return content


def open_classifier(run: Run) -> tuple[Any, dict[str, Any]]:
    """The best model of a classification run, as timm builds it, and its config.json.

    Raises:
        ValueError: no epoch of it has finished, it is of another task, or its files are damaged.
    """
    state = run.read_weights()
    content = read_json(run.model_config, {})
    for name, words in (("label_names", "classes"), ("architecture", "architecture")):
        if not content.get(name):
            raise ValueError(f"{run.path} is not a classification run: its config.json names no {words}")
    content = read_classifier(run.model_config)
    with naming_damage(run.model_config, f"its model_args make no {content['architecture']}"):
        model = timm.create_model(f"local-dir:{run.path}")
    check_weights(model, {name: tensor.shape for name, tensor in state.items()}, run.model_config)
    model.load_state_dict(state)
    return model, content


def check_classes(names: Sequence[str], outputs: int) -> None:
    """Raise ValueError where names do not stand for the outputs of a model, one each."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"label_names has {twice[0]!r} twice")
    if len(names) != outputs:
        raise ValueError(f"num_classes is {outputs}, and label_names has {len(names)} names")


def check_normalization(in_chans: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise ValueError where there is not one usable mean and deviation for each channel."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != in_chans:
            raise ValueError(f"{name} must have a value for each of {in_chans} channels, got {values}")
    normalization(in_chans, mean, std)
