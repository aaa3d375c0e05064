"""Long lists that worker processes share, forked or spawned, where each would copy a list of objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["SharedIntegers", "SharedItems", "SharedNames"]

T = TypeVar("T")


class SharedIntegers:
    """Integers in a tensor, which PyTorch hands to its workers in shared memory."""

    def __init__(self, values: ArrayLike, dtype: DTypeLike = np.int64) -> None:
        self._tensor = torch.from_numpy(np.array(values, dtype=dtype))

    @property
    def array(self) -> NDArray[Any]:
        return self._tensor.numpy()


class SharedItems(Sequence[T]):
    """Objects in a tensor, one pickle after the other."""

    encode: Callable[[T], bytes] = staticmethod(pickle.dumps)
    decode: Callable[[bytes], T] = staticmethod(pickle.loads)

    def __init__(self, items: Iterable[T]) -> None:
        encoded = [self.encode(item) for item in items]
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8))
        self._ends = SharedIntegers(np.cumsum([0, *map(len, encoded)]))

    def __len__(self) -> int:
        return len(self._ends.array) - 1

    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        start, end = self._ends.array[range(len(self))[index] :][:2]
        return self.decode(self._bytes.numpy()[start:end].tobytes())

    def __iter__(self) -> Iterator[T]:
        joined, ends = self._bytes.numpy().tobytes(), self._ends.array.tolist()
        return (self.decode(joined[start:end]) for start, end in pairwise(ends))


class SharedNames(SharedItems[str]):
    """Names of files, of any bytes, in any locale."""

    encode = staticmethod(partial(str.encode, errors="surrogatepass"))
    decode = staticmethod(partial(bytes.decode, errors="surrogatepass"))
