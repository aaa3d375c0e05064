from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch.multiprocessing  # noqa: F401  (hands tensors on in shared memory)
from hypothesis import given
from hypothesis import strategies as st

from atconv.data.arrays import SharedIntegers, SharedItems, SharedNames
from support.tiny import start_process


@given(st.lists(st.binary(max_size=9).filter(lambda name: b"\0" not in name)))
def test_names_of_any_bytes_come_back(names: list[bytes]) -> None:
    expected = [os.fsdecode(name) for name in names]
    for shared in (SharedNames(expected), pickle.loads(pickle.dumps(SharedNames(expected)))):
        assert len(shared) == len(expected)
        assert list(shared) == expected
        assert [shared[i] for i in range(len(shared))] == expected
        assert [shared[-i] for i in range(1, len(shared) + 1)] == expected[::-1]


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(allow_nan=False))))
def test_items_come_back(items: list[tuple[str, float]]) -> None:
    shared = pickle.loads(pickle.dumps(SharedItems(items)))
    assert list(shared) == [shared[i] for i in range(len(shared))] == items


def test_beyond_the_end_is_nothing() -> None:
    with pytest.raises(IndexError):
        SharedNames(["a"])[1]


def _write_into(integers: SharedIntegers) -> None:
    integers.array[0] = 7


def test_a_process_that_was_not_forked_shares_them() -> None:
    integers = SharedIntegers(np.arange(5))
    process = start_process(_write_into, integers)
    process.join(60)
    assert process.exitcode == 0
    assert integers.array.tolist() == [7, 1, 2, 3, 4]
