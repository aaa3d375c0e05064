from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compiled code of other tests must not count as a recompilation of this one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
