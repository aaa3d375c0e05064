"""What every layer that may be replaced has, whatever kind it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from atconv.replace.adapters import GridWriter, MaskCheck

__all__ = ["Hook", "Place"]

Hook = tuple[nn.Module, "GridWriter | MaskCheck"]


@dataclass(eq=False)
class Place:
    """A layer of a model: replaced, or kept for a reason."""

    name: str
    """of the module that is replaced, as in model.named_modules()"""
    reason: str = ""
    """why it cannot be replaced"""
    hooks: tuple[Hook, ...] = ()
    """what runs before a module of the model: the writer of grids, what rejects masks"""
    explained: float | None = None
    averages: float | None = None
    exact: bool = False
    determined: bool = True
    """as in `Replacement`"""

    @property
    def copied(self) -> bool:
        """Its weights are taken over as they are."""
        return self.exact
