"""Plots of a classifier's evaluation: confusion matrix, worst mistakes. Readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atconv.data.images import Mode
from atconv.plots import plt, save, shorten
from atconv.tasks.classification.metrics import ClassificationMetrics

__all__ = ["plot_confusion_matrix", "plot_mistakes"]

_MAX_NUMBERED = 20  # classes up to which a confusion matrix shows its numbers
_MAX_NAMED = 60  # and the names of its classes


def plot_confusion_matrix(metrics: ClassificationMetrics, path: Path) -> None:
    """Share of each true class (row) that was given each class (column), in percent."""
    from sklearn.metrics import confusion_matrix

    classes, predicted = metrics.classes, metrics.probabilities.argmax(1)
    counts = confusion_matrix(metrics.labels, predicted, labels=range(len(classes)))
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered, named = len(classes) <= _MAX_NUMBERED, len(classes) <= _MAX_NAMED
    size = min(12.0, 3.2 + 0.42 * len(classes)) if named else 9.0
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if named:
        ticks, names = range(len(classes)), [shorten(name) for name in classes]
        options: Any = {"fontsize": 10 if numbered else 8}
        axis.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **options)
        axis.set_yticks(ticks, names, **options)
    if numbered:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 55 else "black"
            axis.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    # Over the figure, which leaves room for it where there are few classes.
    accuracy = 100 * np.trace(counts) / max(counts.sum(), 1)
    figure.suptitle(f"Confusion matrix: {counts.sum()} images,\n{accuracy:.2f} % right", fontsize=11)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axis, label="share of the true class (%)", shrink=0.8)
    save(figure, path)


def plot_mistakes(metrics: ClassificationMetrics, worst: Sequence[int], mode: Mode, path: Path) -> None:
    """The wrong predictions at the positions `worst`, with the names of both classes."""
    classes, labels = metrics.classes, metrics.labels
    predicted, confidence = metrics.probabilities.argmax(1), metrics.probabilities.max(1)
    wrong = int((predicted != labels).sum())
    columns = min(5, max(3, len(worst)))  # three leave room for the title
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.2 * columns, 2.7 * rows + 0.7), layout="constrained", squeeze=False
    )
    figure.suptitle(
        f"Worst mistakes: {len(worst)} of {wrong} wrong among\n{len(labels)} images, most confident first"
        if wrong
        else f"No mistakes among {len(labels)} images"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, worst, strict=False):
        axis.imshow(metrics.source.read(int(index), mode), cmap="gray" if mode == "L" else None)
        file = Path(metrics.source.name(int(index))).name
        axis.set_title(
            f"{shorten(file, 24)}\nis {shorten(classes[labels[index]])}\n"
            f"taken for {shorten(classes[predicted[index]], 13)}, {100 * confidence[index]:.0f} %",
            fontsize=9,
        )
    save(figure, path)
