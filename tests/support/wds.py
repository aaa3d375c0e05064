"""WebDataset shards of tiny images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["Sample", "png", "samples", "write_shard"]

Sample = Mapping[str, bytes]


def png(seed: int) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


def samples(count: int, first: int = 0) -> list[Sample]:
    return [{"png": png(i), "cls": b"%d\n" % (i % 2)} for i in range(first, first + count)]


def write_shard(path: Path, content: Sequence[Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(content):
            for suffix, data in sample.items():
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
