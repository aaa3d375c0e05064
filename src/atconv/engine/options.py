"""What values options take: types with ranges, checked and described in one place.

>>> @dataclass
... class Options:
...     epochs: PositiveInt = 30
...     hflip: Share = 0.5
...
...     def __post_init__(self) -> None:
...         check_options(self)
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

__all__ = [
    "BelowOne",
    "Count",
    "CropShare",
    "Degrees",
    "EndRate",
    "Factor",
    "Fraction",
    "LearningRate",
    "NonNegative",
    "NonNegativeInt",
    "Percent",
    "Pixels",
    "Port",
    "Positive",
    "PositiveInt",
    "PositiveShare",
    "Rule",
    "Seed",
    "Share",
    "Steps",
    "Temperature",
    "Workers",
    "as_list",
    "check_options",
    "check_value",
    "describe",
    "did_you_mean",
    "rule_of",
]


@dataclass(frozen=True)
class Rule:
    """A range of values."""

    words: str
    """for messages: NAME must …"""
    short: str
    """for help"""
    holds: Callable[[Any], bool]
    at_most: float = math.inf
    """no value above it makes sense, or would fit a machine"""


def _between(low: float, high: float) -> Rule:
    return Rule(f"lie in {low:g} … {high:g}", f"{low:g} … {high:g}", lambda value: low <= value <= high)


_INT32 = 2**31 - 1
PositiveInt: TypeAlias = Annotated[int, Rule("be at least 1", "≥ 1", lambda value: value >= 1, _INT32)]
NonNegativeInt: TypeAlias = Annotated[int, Rule("not be negative", "≥ 0", lambda value: value >= 0, _INT32)]
Count: TypeAlias = Annotated[int, Rule("not be negative", "≥ 0", lambda value: value >= 0)]
Pixels: TypeAlias = Annotated[int, Rule("be at least 1", "≥ 1", lambda value: value >= 1, 2**14)]
Steps: TypeAlias = Annotated[int, Rule("be at least 1", "≥ 1", lambda value: value >= 1, 10**5)]
Workers: TypeAlias = Annotated[int, Rule("not be negative", "≥ 0", lambda value: value >= 0, 1024)]
Seed: TypeAlias = Annotated[int, Rule("not be negative", "≥ 0", lambda value: value >= 0, 2**63 - 1)]
Port: TypeAlias = Annotated[int, _between(1, 65535)]
Positive: TypeAlias = Annotated[float, Rule("be positive", "> 0", lambda value: value > 0)]
NonNegative: TypeAlias = Annotated[float, Rule("not be negative", "≥ 0", lambda value: value >= 0)]
LearningRate: TypeAlias = Annotated[float, Rule("be positive", "> 0", lambda value: value > 0, 1000)]
EndRate: TypeAlias = Annotated[float, Rule("not be negative", "≥ 0", lambda value: value >= 0, 1000)]
Share: TypeAlias = Annotated[float, Rule("lie in 0 … 1", "0 … 1", lambda value: 0 <= value <= 1)]
Fraction: TypeAlias = Annotated[float, Rule("lie between 0 and 1", "> 0, < 1", lambda value: 0 < value < 1)]
BelowOne: TypeAlias = Annotated[float, Rule("lie in [0, 1)", "≥ 0, < 1", lambda value: 0 <= value < 1)]
PositiveShare: TypeAlias = Annotated[
    float, Rule("be positive and at most 1", "> 0, ≤ 1", lambda value: 0 < value <= 1)
]
CropShare: TypeAlias = Annotated[float, _between(0.1, 1)]
Factor: TypeAlias = Annotated[float, _between(0.01, 100)]
Degrees: TypeAlias = Annotated[float, _between(0, 180)]
Percent: TypeAlias = Annotated[float, _between(0, 100)]
Temperature: TypeAlias = Annotated[float, _between(0.01, 1000)]

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping, such as {name: value}",
    NoneType: "null",
}


def check_options(config: Any) -> None:
    """Raise ValueError where a field of a dataclass holds what its type does not allow. Where those are
    meant, whole numbers become floats, which libraries take for another type, and lists become tuples."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        check_value(field.name, value, hints[field.name])
        setattr(config, field.name, _as_typed(as_list(value, hints[field.name]), hints[field.name]))


def check_value(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError where a value does not fit a type. One number stands for a list of it."""
    value, rule = as_list(value, kind), rule_of(kind)
    if not _fits(value, kind):
        raise ValueError(f"{name} must be {describe(kind)}, got {_shown(value)}")
    if rule and value is not None and not all(map(rule.holds, _numbers(value))):
        otherwise = ", or be null" if _fits(None, kind) else ""
        raise ValueError(f"{name} must {rule.words}{otherwise}, got {_shown(value)}")
    if rule and value is not None and max(_numbers(value), default=0) > rule.at_most:
        raise ValueError(f"{name} must be at most {rule.at_most:,}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in a message."""
    try:
        return repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def as_list(value: Any, kind: Any) -> Any:
    """A list of one in place of one number, where a type asks for a list of any length."""
    lists = (each for each in (kind, *get_args(kind)) if get_origin(each) is tuple and ... in get_args(each))
    several = next(lists, None)
    alone = several is not None and not isinstance(value, bool) and isinstance(value, (int, float))
    return (value,) if alone else value


def describe(kind: Any) -> str:
    """A type in words: "a whole number"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list):
        count = "" if origin is list or ... in arguments else f"{len(arguments)} "
        return f"a list of {count}{describe(arguments[0]).partition(',')[0].split(maxsplit=1)[-1]}s"
    return _WORDS.get(origin or kind, "something else")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def rule_of(kind: Any) -> Rule | None:
    """The range of a type: its own, or that of the type inside it."""
    if get_origin(kind) is Annotated:
        return next((each for each in get_args(kind)[1:] if isinstance(each, Rule)), None)
    return next((rule for rule in map(rule_of, get_args(kind)) if rule), None)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, whatever its range."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(value, arguments[0])
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin in (tuple, list):
        several = origin is list or ... in arguments
        each_kind = [arguments[0]] * len(value) if several and _is_list(value) else arguments
        return _is_list(value) and len(value) == len(each_kind) and all(map(_fits, value, each_kind))
    if origin is dict or kind is dict:
        key, item = arguments or (Any, Any)
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, origin or kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _as_typed(value: Any, kind: Any) -> Any:
    """A value whose whole numbers are floats, and whose lists are tuples, where its type asks for these."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated or (origin in (Union, UnionType) and value is not None):
        return _as_typed(value, arguments[0])
    if origin is tuple and _is_list(value):
        kinds = [arguments[0]] * len(value) if ... in arguments else arguments
        return tuple(map(_as_typed, value, kinds))
    return float(value) if kind is float else value


def _numbers(value: Any) -> Sequence[Any]:
    """The numbers in nested lists and mappings."""
    if not _is_list(value) and not isinstance(value, Mapping):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [number for part in parts for number in _numbers(part) if number is not None]
