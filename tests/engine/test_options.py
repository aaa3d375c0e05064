"""Ranges of options: extremes are rejected in one line that names the option, or can be worked with."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atconv.command_line import Parser, add_options
from atconv.engine.options import check_value, rule_of
from atconv.tasks import TASKS, get_task
from atconv.tasks.classification.analyze import analyze
from atconv.tasks.classification.predictor import ClassificationPredictor
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.predictor import DetectionPredictor
from atconv.tasks.generation.commands import sample_run
from atconv.tasks.generation.encode import encode
from atconv.tasks.generation.evaluation import EvaluationConfig
from atconv.tasks.generation.sampling import SamplerConfig
from atconv.tasks.segmentation.predictor import SegmentationPredictor

EXTREMES: list[Any] = [
    0,
    -1,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e-9,
    1e23,
    10**23,
    10**400,
    True,
    "7",
]
CONFIGS: dict[str, Callable[..., Any]] = {
    **{name: get_task(name).config for name in TASKS},
    "sampler": SamplerConfig,
    "evaluation": EvaluationConfig,
}
FUNCTIONS: list[Callable[..., Any]] = [
    ClassificationPredictor.evaluate,
    ClassificationPredictor.infer,
    DetectionPredictor.evaluate,
    DetectionPredictor.infer,
    SegmentationPredictor.evaluate,
    analyze,
    encode,
    sample_run,
]


def numeric(kind: Any) -> bool:
    parts = typing.get_args(kind)
    return kind in (int, float) or (typing.get_origin(kind) is not dict and any(map(numeric, parts)))


def numeric_options(config: type) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(config, include_extras=True)
    return [(field.name, hints[field.name]) for field in fields(config) if numeric(hints[field.name])]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_extreme_value_is_accepted_or_named(name: str) -> None:
    make: Any = CONFIGS[name]
    for option, kind in numeric_options(make):
        default = inspect.signature(make).parameters[option].default
        for value in EXTREMES:
            several = isinstance(default, tuple) or "tuple" in str(kind)
            count = len(default) if isinstance(default, tuple) else 1
            given = (value,) * count if several else value
            numbers, message = made(make, option, given)
            assert message is None or option.split("_")[0] in message, f"{option}={given}: {message}"
            assert "\n" not in (message or "")
            for number in numbers:
                assert abs(number) < float("inf"), option
                assert not isinstance(number, int) or abs(number) < 2**63, option


def made(make: Callable[..., Any], option: str, value: Any) -> tuple[tuple[Any, ...], str | None]:
    """The numbers of an option as a configuration has them, or none and why not."""
    try:
        numbers = getattr(make(**{option: value}), option)
    except ValueError as error:
        return (), str(error)
    return numbers if isinstance(numbers, tuple) else (numbers,), None


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_numeric_parameters_of_commands_have_a_range(function: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(function, include_extras=True)
    found = [name for name in inspect.signature(function).parameters if numeric(hints.get(name))]
    assert found
    for name in found:
        assert rule_of(hints[name]) is not None, name
        for value in (-1, float("nan"), 10**23):
            with pytest.raises(ValueError, match=name):
                check_value(name, value, hints[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 1e-9}, "crop_pct must lie in 0.1 … 1, got 1e-09"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"seed": 10**23}, "seed must be at most 9,223,372,036,854,775,807, got 1" + "0" * 23),
        ({"workers": 10**6}, "workers must be at most 1,024"),
        ({"image_size": 10**6}, "image_size must be at most 16,384"),
        ({"rotate": 1e23}, "rotate must lie in 0 … 180"),
        ({"crop_ratio": (1e-9, 1.0)}, "crop_ratio must lie in 0.01 … 100"),
        ({"lr": 1e23}, "lr must be at most 1,000, got 1e+23"),
        ({"mean": (1e30, 0, 0)}, "mean must lie in 0 … 1, of pixels divided by 255"),
        ({"std": (58.0,)}, "std must lie in 0.001 … 10, of pixels divided by 255"),
        ({"layer_decay": 1.5}, "layer_decay must be positive and at most 1, or be null"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(*value),
)
def test_a_value_out_of_range_names_the_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        get_task("classification").config(**options)


@settings(max_examples=30, deadline=None, database=None)
@given(st.integers(0, 999))
def test_whole_numbers_are_floats_where_those_are_meant(value: int) -> None:
    config = get_task("classification").config(lr=value + 1, betas=(0, 0.999), mean=(value % 2,))
    assert (config.lr, config.betas, config.mean) == (value + 1.0, (0.0, 0.999), (float(value % 2),))
    assert all(type(number) is float for number in (config.lr, *config.betas, *config.mean))


def test_one_number_is_a_list_of_one(tmp_path: Path) -> None:
    config = DetectionConfig(data="street", min_size=64, in_chans=1, mean=0.5, std=1)  # type: ignore[arg-type]
    assert (config.min_size, config.mean, config.std) == ((64,), (0.5,), (1.0,))
    spec = get_task("detection")
    for text, expected in (("64", (64,)), ("[64]", [64]), ("[48, 64]", [48, 64])):
        parser = Parser()
        add_options(parser, spec.config)
        assert list(parser.parse_args(["--min-size", text]).min_size) == list(expected)
    with pytest.raises(SystemExit):
        parser.parse_args(["--min-size", "0"])
    (tmp_path / "recipe.yaml").write_text("min_size: 64\n")
    assert DetectionConfig(data="street", **spec.read_recipe(str(tmp_path / "recipe.yaml"))).min_size == (64,)
