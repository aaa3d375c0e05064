"""Pictures of a run: learning curves, confusion matrix, worst mistakes. Readable at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atconv.data.images import Mode
from atconv.data.sources import KeptPictures
from atconv.data.splits import Split
from atconv.engine.curves import Panel, draw_curves
from atconv.plots import plt, save, shorten

__all__ = [
    "confusion_matrix",
    "learning_curves",
    "worst_mistakes",
    "worst_positions",
]

_MOST_NUMBERED = 20  # classes up to which a confusion matrix shows its numbers


def learning_curves(history: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Loss, accuracy and learning rate by epoch, `best` of which is marked."""
    panels = [
        Panel("Loss", "cross-entropy", {"train, augmented": "train_loss", "validation": "val_loss"}),
        Panel("Accuracy", "top-1 (%)", {"train, augmented": "train_top1", "validation": "val_top1"}),
        Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
    ]
    draw_curves(history, panels, path, ("val_top1", best))


def confusion_matrix(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str], path: Path
) -> None:
    """Share of each true class (row) that was given each class (column), in percent."""
    from sklearn.metrics import confusion_matrix as count_pairs

    counts = count_pairs(labels, predicted, labels=range(len(classes)))
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = len(classes) <= _MOST_NUMBERED
    side = min(12.0, 3.2 + 0.42 * len(classes)) if numbered else 9.0
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if numbered:
        ticks = range(len(classes))
        axis.set_xticks(
            ticks, [shorten(name) for name in classes], rotation=45, ha="right", rotation_mode="anchor"
        )
        axis.set_yticks(ticks, [shorten(name) for name in classes])
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 55 else "black"
            axis.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
            )
    accuracy = 100 * np.trace(counts) / max(counts.sum(), 1)
    axis.set(
        title=f"Confusion matrix: {counts.sum()} images, {accuracy:.2f} % right",
        xlabel="predicted class",
        ylabel="true class",
    )
    figure.colorbar(image, ax=axis, label="share of the true class (%)", shrink=0.8)
    save(figure, path)


def worst_positions(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], most: int = 20
) -> NDArray[np.int64]:
    """Positions of the wrong predictions made with the greatest confidence, most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:most]


def worst_mistakes(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    pictures: Split | KeptPictures,
    mode: Mode,
    classes: Sequence[str],
    path: Path,
) -> None:
    """The wrong predictions that were made with the greatest confidence, most confident first."""
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = worst_positions(probabilities, labels)
    columns = min(5, max(3, len(worst)))  # three leave room for the title
    rows = max(1, -(-len(worst) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.2 * columns, 2.5 * rows + 0.6), layout="constrained", squeeze=False
    )
    figure.suptitle(
        f"Worst mistakes: {len(worst)} of {len(wrong)} wrong among {len(labels)} images, most confident first"
        if len(wrong)
        else f"No mistakes among {len(labels)} images"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, worst, strict=False):
        axis.imshow(pictures.read(int(index), mode), cmap="gray" if mode == "L" else None)
        axis.set_title(
            f"is {shorten(classes[labels[index]])}\n"
            f"taken for {shorten(classes[predicted[index]])}, {100 * confidence[index]:.0f} %",
            fontsize=9,
        )
    save(figure, path)
