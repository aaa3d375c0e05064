"""YAML and JSON from people and from runs: what is wrong with a file is said in one line, with its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_yaml"]

_MAX_VALUES = 100_000  # of a file, its aliases written out


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or its aliases stand for more values than any configuration has.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count(node, {}) > _MAX_VALUES:
                raise ValueError(f"its aliases stand for more than {_MAX_VALUES:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path} is not valid YAML{place}: {error.problem or error.context}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(f"{path} cannot be read: its values are nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does."""


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
