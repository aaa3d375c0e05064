"""Nearest neighbors among vectors of any number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["nearest_blocks"]

_BLOCK = 2048


def nearest_blocks(
    queries: NDArray[Any], keys: NDArray[Any], count: int, own: bool = False, above: float = -3.0
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """The nearest keys of queries by cosine similarity, in blocks, so that memory is bounded.

    Args:
        queries, keys: rows of length 1.
        own: queries are the keys, and an image is no neighbor of its own.
        above: similarity that neighbors must exceed.

    Yields:
        position of the first query of a block; similarities, block × count, largest first; positions of keys,
        −1 where there are no more.
    """
    for start in range(0, len(queries), _BLOCK):
        block = torch.from_numpy(queries[start : start + _BLOCK]).float()
        best, places = torch.full((len(block), count), above), torch.full((len(block), count), -1)
        for offset in range(0, len(keys), _BLOCK):
            similar = block @ torch.from_numpy(keys[offset : offset + _BLOCK]).float().T
            if own and offset == start:
                similar.fill_diagonal_(-3)
            # Those that may gain: sorting all would cost ten times that.
            rows = (similar.amax(1) > best[:, -1]).nonzero().flatten()
            positions = torch.arange(offset, offset + similar.shape[1]).expand(len(rows), -1)
            best[rows], order = torch.cat([best[rows], similar[rows]], 1).topk(count)
            places[rows] = torch.cat([places[rows], positions], 1).gather(1, order)
        yield start, best.numpy(), places.numpy()
