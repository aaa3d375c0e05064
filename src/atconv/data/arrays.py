"""Long lists that worker processes share, forked or spawned, where each would copy a list of objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

__all__ = ["SharedIntegers", "SharedNames"]


class SharedIntegers:
    """Integers in a tensor, which PyTorch hands to its workers in shared memory."""

    def __init__(self, values: ArrayLike) -> None:
        self._tensor = torch.from_numpy(np.array(values, dtype=np.int64))

    @property
    def array(self) -> NDArray[np.int64]:
        return self._tensor.numpy()


class SharedNames(Sequence[str]):
    """Names of files, of any bytes, one after the other in a tensor."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8))
        self._ends = SharedIntegers(np.cumsum([0, *map(len, encoded)]))

    def __len__(self) -> int:
        return len(self._ends.array) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start, end = self._ends.array[range(len(self))[index] :][:2]
        return os.fsdecode(self._bytes.numpy()[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        joined, ends = self._bytes.numpy().tobytes(), self._ends.array.tolist()
        return (os.fsdecode(joined[start:end]) for start, end in pairwise(ends))
