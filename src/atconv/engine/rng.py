"""Seeds by purpose, so that a resumed run equals one that was never interrupted.

Seeds are derived from (purpose, seed, epoch, sample) for data and (purpose, seed, step) for the model and
mixing: what is sampled does not depend on what was sampled before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_seed", "seed_generators", "seeded"]


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed for a tuple of parts, such as ("data", seed, epoch, index)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators. timm's Mixup and transforms use all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with these generators seeded, then put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed_generators(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
