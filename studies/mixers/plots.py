"""Plot of the study: accuracy against cost, and how far each variant is from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atconv.plots import plt, save
from atconv.tasks.classification.study_report import Summary

__all__ = ["compare_variants", "plot_inhibition"]


def compare_variants(summaries: Sequence[Summary], reference: str, title: str, path: Path) -> None:
    """Accuracy against MACs with the spread of runs; next to it each difference to the reference.

    Args:
        summaries: the variants, in the order that the differences are listed in.
        reference: the variant with a large mark.
        title: above both plots.
        path: PNG to write.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, max(4.6, 1.4 + 0.3 * len(summaries))), layout="constrained"
    )
    colors, markers = plt.get_cmap("tab10"), "osD^v"
    several = any(summary.deviation for summary in summaries)
    spread = "bar: standard deviation of runs" if several else "one run each"
    positions = _spread_out([summary.macs / 1e6 for summary in summaries])
    for row, (summary, position) in enumerate(zip(summaries, positions, strict=True)):
        style: dict[str, Any] = {
            "color": colors(row % 10),
            "marker": markers[row // 10 % len(markers)],
            "markersize": 11 if summary.variant == reference else 7,
            "capsize": 3,
            "linestyle": "none",
        }
        left.errorbar(position, summary.mean, yerr=summary.deviation or None, **style)
        difference = 0.0 if summary.variant == reference else summary.difference
        if difference is not None:
            single = summary.half_width is None and summary.variant != reference
            filled = {"markerfacecolor": "white"} if single else {}
            right.errorbar(difference, row, xerr=summary.half_width, **style, **filled)
    left.set(
        xlabel="MACs of an image, millions\n(equal ones side by side; marks as on the right)",
        ylabel=f"top-1 on test images, % ({spread})",
    )
    right.axvline(0, color="gray", linewidth=1)
    pairs = "95 % interval; hollow: one pair" if several else "one pair each, no interval"
    right.set_xlabel(f"top-1 minus {reference}'s, points ({pairs})")
    right.set_yticks(range(len(summaries)), [summary.variant for summary in summaries])
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def plot_inhibition(rows: Sequence[Mapping[str, str]], names: Sequence[str], title: str, path: Path) -> None:
    """λ, the mean over layers and channels, after each epoch: a line for each run, a color for each variant.

    Args:
        rows: of results.csv.
        names: of all variants, in the order of `compare_variants`, which has the same colors.
        title: above the plot.
        path: PNG to write.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    colors = plt.get_cmap("tab10")
    runs = [row for row in rows if row["inhibition_by_epoch"]]
    for place, variant in enumerate(names):
        for number, row in enumerate(row for row in runs if row["variant"] == variant):
            means = [float(mean) for mean in row["inhibition_by_epoch"].split()]
            label = variant if number == 0 else None
            axis.plot(range(1, len(means) + 1), means, color=colors(place % 10), alpha=0.7, label=label)
    axis.axhline(0.5, color="gray", linewidth=1, linestyle=":")
    axis.set(xlabel="epoch", ylabel="λ = sigmoid(α), mean of all channels", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def _spread_out(positions: Sequence[float]) -> list[float]:
    """The positions, those that coincide moved a little to the left and right, so that each can be seen."""
    width = max(positions) - min(positions)
    groups: list[list[int]] = []
    for i in sorted(range(len(positions)), key=lambda i: positions[i]):
        if groups and positions[i] - positions[groups[-1][0]] <= 0.005 * width:
            groups[-1].append(i)
        else:
            groups.append([i])
    moved = list(positions)
    for group in groups:
        for place, i in enumerate(group):
            moved[i] += 0.015 * width * (place - (len(group) - 1) / 2)
    return moved
