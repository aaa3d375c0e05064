"""A CPU without instructions for half precision never computes in it, whatever a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import atconv
from atconv.engine import devices
from support.tiny import train_tiny
from support.tiny_sit import train_tiny_sit

HALF = (torch.bfloat16, torch.float16)


class HalfPrecision(TorchDispatchMode):
    """Operations that return half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.operations |= {str(func) for leaf in leaves if leaf.dtype in HALF}
        return output


@contextmanager
def operations_in_half_precision() -> Iterator[set[str]]:
    with HalfPrecision() as watch:
        yield watch.operations


@pytest.mark.parametrize(
    ("make_run", "asked", "has_instructions"),
    [(train_tiny, "bf16", True), (train_tiny, "bf16", False), (train_tiny_sit, "fp16", False)],
)
def test_training_computes_in_what_the_cpu_has(
    make_run: Callable[..., Path],
    asked: str,
    has_instructions: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_instructions)
    with operations_in_half_precision() as operations:
        make_run(tmp_path / "run", precision=asked)
    assert bool(operations) is has_instructions


@pytest.mark.slow
def test_using_a_run_in_half_precision_computes_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)  # it was trained elsewhere
    run = train_tiny(tmp_path / "run", precision="bf16")
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
    predictor = atconv.load(run)
    with operations_in_half_precision() as operations:
        predictor(np.zeros((8, 8), np.uint8))
        predictor.evaluate()
        predictor.export(format="torch", batch_size=2)
    assert not operations
