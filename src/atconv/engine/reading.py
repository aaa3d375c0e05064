"""YAML and JSON from people and from runs: what is wrong with a file is said in one line, with its name."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atconv.engine.options import check_value
from atconv.io import check_file

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_weights", "naming_damage", "read_json", "read_yaml"]

_MAX_VALUES = 100_000  # of a file, its aliases written out


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or its aliases stand for more values than any configuration has.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: a YAML file is needed")
    try:
        check_file(path)
        return copy.deepcopy(_parse_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path} is not valid YAML{place}: {error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: save it as such") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(f"{path} cannot be read: its values are nested too deeply") from None


@functools.lru_cache(maxsize=4)  # a command reads the configuration of a run several times
def _parse_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {_MAX_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_json(
    path: Path, schema: Mapping[str, Any], inside: str | None = None, partial: bool = False
) -> dict[str, Any]:
    """The values that a JSON file holds by name, without those that are null.

    Args:
        schema: types of values by name. Those that may be None may be missing; others may be there too.
        inside: name of a value that holds them, where the file has one of that name.
        partial: any of them may be missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a value is missing or of another type.
    """
    try:
        check_file(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = content.get(inside, content)
        if not isinstance(content, dict):
            raise ValueError(f"values by name are expected, got {content!r}")
        for name, kind in schema.items():
            if name in content or not partial:
                check_value(name, content.get(name), kind)
        return {name: value for name, value in content.items() if value is not None}
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {_in_one_line(error)}") from error


@contextmanager
def naming_damage(file: Path, otherwise: str = "its values do not fit together") -> Iterator[None]:
    """Where values of a file are rejected, name it in one line. The words of other errors than ValueError are
    for programmers: others stand in their place."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # each library has its own kinds
        reason = _in_one_line(error) if isinstance(error, ValueError) else otherwise
        raise ValueError(f"{file} is damaged: {reason}") from error


def check_weights(model: nn.Module, shapes: Mapping[str, Sequence[int]], config: Path) -> None:
    """Raise ValueError where weights of these shapes are not those of the model that a file describes."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted({*own, *shapes}):
        needed, there = own.get(name), shapes.get(name)
        if needed is None or there is None or needed != tuple(there):
            texts = ["none" if each is None else str(tuple(each)) for each in (needed, there)]
            raise ValueError(
                f"{config} does not fit the weights next to it: {name} has the shape {texts[0]} in the model "
                f"that it describes, {texts[1]} in the weights; one of them is damaged"
            )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does, and neither 1:30 (90 in YAML 1.1) nor 010 (8). No key of a
    mapping stands twice."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if number and _NOT_DECIMAL.match(value) else tag

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_NOT_DECIMAL = re.compile(r"[^.]*:|[-+]?0[0-9_]")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _count(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Values below a node, those behind aliases as often as they stand there."""
    if node not in counts:
        counts[node] = _MAX_VALUES + 1  # while it is counted: an alias to what it stands in has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        counts[node] = 1 + sum(_count(each, counts) for pair in pairs for each in pair)
    return counts[node]
