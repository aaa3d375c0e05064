"""Plots of a classifier's evaluation: confusion matrix, worst mistakes. Readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atconv.data.images import Mode
from atconv.plots import class_labels, plt, save, shorten
from atconv.tasks.classification.metrics import ClassificationMetrics
from atconv.tasks.classification.multi_label_metrics import MultiLabelMetrics

__all__ = ["plot_class_scores", "plot_confusion_matrix", "plot_mistakes", "plot_multi_label_mistakes"]

_MAX_BARS = 40  # classes
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
        ticks, names = range(len(classes)), class_labels(classes)
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
    names, labels = class_labels(metrics.classes, 15), metrics.labels
    predicted, confidence = metrics.probabilities.argmax(1), metrics.probabilities.max(1)
    # Names come last: behind one that is written from right to left, a number would stand before it.
    captions = [
        f"is {names[labels[i]]}\n{100 * confidence[i]:.0f} % sure: {names[predicted[i]]}" for i in worst
    ]
    _plot_images(metrics, worst, captions, int((predicted != labels).sum()), mode, path)


def plot_multi_label_mistakes(metrics: MultiLabelMetrics, mode: Mode, path: Path, count: int = 20) -> None:
    """The images with the labels that are most confidently wrong, given or left out."""
    wrong = metrics.predicted != (metrics.labels > 0)
    gaps = np.where(wrong, np.abs(metrics.probabilities - metrics.labels), 0.0)
    names = class_labels(metrics.classes, 13)
    order = np.argsort(-gaps.max(1), kind="stable")[: min(count, int(wrong.any(1).sum()))]
    captions = []
    for image in order:
        named = np.argsort(-gaps[image], kind="stable")[: min(2, int(wrong[image].sum()))]
        lines = (
            f"{100 * metrics.probabilities[image, i]:.0f} %, "
            f"{'is' if metrics.labels[image, i] else 'is not'} {names[i]}"
            for i in named
        )
        captions.append("\n".join(lines))
    _plot_images(metrics, order.tolist(), captions, int(wrong.any(1).sum()), mode, path)


def plot_class_scores(metrics: MultiLabelMetrics, path: Path) -> None:
    """Average precision and F1 of each class, of many those with the lowest."""
    known = sorted((row for row in metrics.per_class if row["ap"] is not None), key=lambda row: row["ap"])
    rows = known[:_MAX_BARS][::-1]
    figure, axis = plt.subplots(figsize=(6.5, 1.4 + 0.3 * max(len(rows), 3)), layout="constrained")
    places = np.arange(len(rows))
    for offset, name, label in ((0.2, "ap", "average precision"), (-0.2, "f1", "F1 at its threshold")):
        axis.barh(places + offset, [row[name] for row in rows], 0.38, label=label)
    names = dict(zip(metrics.classes, class_labels(metrics.classes), strict=True))
    axis.set_yticks(places, [f"{names[row['class']]} ({row['images']})" for row in rows])
    axis.set(xlim=(0, 100), xlabel="%")
    axis.grid(axis="x", alpha=0.3)
    few = f", the {len(rows)} lowest of {len(known)}" if len(known) > len(rows) else ""
    figure.suptitle(f"Classes (images): mAP {metrics.map:.2f} %{few}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save(figure, path)


def _plot_images(
    metrics: ClassificationMetrics | MultiLabelMetrics,
    worst: Sequence[int],
    captions: Sequence[str],
    wrong: int,
    mode: Mode,
    path: Path,
) -> None:
    """Images by their positions, with their files' names and captions."""
    columns = min(5, max(3, len(worst)))  # three leave room for the title
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.2 * columns, 2.7 * rows + 0.7), layout="constrained", squeeze=False
    )
    figure.suptitle(
        f"Worst mistakes: {len(worst)} of {wrong} wrong among\n{metrics.images} images, most confident first"
        if wrong
        else f"No mistakes among {metrics.images} images"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, index, caption in zip(axes.flat, worst, captions, strict=False):
        axis.imshow(metrics.source.read(int(index), mode), cmap="gray" if mode == "L" else None)
        file = Path(metrics.source.name(int(index))).name
        axis.set_title(f"{shorten(file, 24)}\n{caption}", fontsize=9)
    save(figure, path)
