"""Images that lie in two splits, whatever they are called: a model would be tested on what it learned."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from atconv.data.folders import SPLITS
from atconv.data.unreadable import SkippedFile

__all__ = ["copies_between", "reject_only_copies"]


def copies_between(keys: Mapping[str, Sequence[Hashable | None]]) -> list[tuple[str, int, str, int]]:
    """Where images are that also lie in a later split (test before val before train): their split and
    position, and the split and position there.

    Args:
        keys: for each split what its images are known by, None where that is unknown.
    """
    found: list[tuple[str, int, str, int]] = []
    seen: dict[Hashable, tuple[str, int]] = {}
    for split in reversed([name for name in SPLITS if name in keys]):
        here: dict[Hashable, tuple[str, int]] = {}
        for i, key in enumerate(keys[split]):
            if key is not None:
                here[key] = split, i
                if key in seen:
                    found.append((split, i, *seen[key]))
        seen |= here
    return found


def reject_only_copies(split: str, where: object, left: Sequence[int], copies: Sequence[SkippedFile]) -> None:
    """Raise ValueError where nothing is left of a split but images that also lie in a later one."""
    example = next((copy for copy in copies if copy.split == split), None)
    if example is not None and not left:
        raise ValueError(
            f"all images of the {split} split of {where} are in a later split too, such as {example.file}, "
            f"{example.reason}: give the splits images of their own, or leave one out"
        )
