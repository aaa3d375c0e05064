"""Plots of runs take longer than a tiny run itself: they are one pixel, except in tests marked `plots`."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

_drawn = False


def draw_plots(drawn: bool) -> None:
    """Draw the plots of what comes now, or leave them empty."""
    global _drawn
    _drawn = drawn


def plots_are_drawn() -> bool:
    return _drawn


def empty_plots(*names: str) -> None:
    """Let functions of `atconv.tasks` write one pixel to the path they get where plots are not drawn."""
    for name in names:
        owner_name, _, function = f"atconv.tasks.{name}".rpartition(".")
        owner = pkgutil.resolve_name(owner_name)
        setattr(owner, function, _drawn_or_empty(getattr(owner, function)))


def _drawn_or_empty(plot: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plot)
    def drawn_or_empty(*arguments: Any, **options: Any) -> None:
        if _drawn:
            plot(*arguments, **options)
        else:
            path = next(each for each in (*arguments, *options.values()) if isinstance(each, Path))
            Image.new("L", (1, 1)).save(path, "PNG")

    return drawn_or_empty
