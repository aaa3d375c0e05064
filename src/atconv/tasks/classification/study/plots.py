"""Picture of a study: accuracy against cost, and how far each variant is from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atconv.plots import plt, save
from atconv.tasks.classification.study.summary import Summary

__all__ = ["compare_variants"]


def compare_variants(found: Sequence[Summary], reference: str, title: str, path: Path) -> None:
    """Accuracy against multiply-adds with the spread of runs; beside it each difference to the reference.

    Args:
        found: the variants, in the order that the differences are listed in.
        reference: the variant that is drawn large.
        title: above both plots.
        path: PNG to write.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, max(4.6, 1.4 + 0.3 * len(found))), layout="constrained"
    )
    colors, markers = plt.get_cmap("tab10"), "osD^v"
    places = _side_by_side([one.macs / 1e6 for one in found])
    for row, (one, place) in enumerate(zip(found, places, strict=True)):
        style: dict[str, Any] = {
            "color": colors(row % 10),
            "marker": markers[row // 10 % len(markers)],
            "markersize": 11 if one.variant == reference else 7,
            "capsize": 3,
            "linestyle": "none",
        }
        left.errorbar(place, one.mean, yerr=one.deviation or None, **style)
        difference = 0.0 if one.variant == reference else one.difference
        if difference is not None:
            single = one.half_width is None and one.variant != reference
            filled = {"markerfacecolor": "white"} if single else {}
            right.errorbar(difference, row, xerr=one.half_width, **style, **filled)
    left.set(
        xlabel="multiply-adds of an image, millions\n(equal ones side by side; marks as on the right)",
        ylabel="top-1 on test images, % (bar: standard deviation of runs)",
    )
    right.axvline(0, color="gray", linewidth=1)
    right.set_xlabel(f"top-1 minus {reference}'s, points (95 % interval; hollow: one pair)")
    right.set_yticks(range(len(found)), [one.variant for one in found])
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _side_by_side(places: Sequence[float]) -> list[float]:
    """The places, those that coincide moved a little to either side, so that each can be seen."""
    width = max(places) - min(places)
    groups: list[list[int]] = []
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        if groups and places[i] - places[groups[-1][0]] <= 0.005 * width:
            groups[-1].append(i)
        else:
            groups.append([i])
    moved = list(places)
    for group in groups:
        for place, i in enumerate(group):
            moved[i] += 0.015 * width * (place - (len(group) - 1) / 2)
    return moved
