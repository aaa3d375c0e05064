"""`atconv neighbors`: the images most like some others, by the features of a trained backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atconv.data.config import DataConfig
from atconv.data.formats import open_sources
from atconv.data.images import read_image
from atconv.data.splits import Split
from atconv.data.unreadable import SkippedFile, name_skipped
from atconv.engine.options import PositiveInt, Workers
from atconv.io import count_of, write_rows
from atconv.plots import plt, save, shorten
from atconv.tasks.classification.embedding import Backbone, is_embeddings, nearest, read_embeddings

__all__ = ["neighbors"]

logger = logging.getLogger(__name__)

_SHOWN_QUERIES, _SHOWN_NEIGHBORS = 10, 8


@dataclass
class _Images:
    """The images that are searched."""

    features: NDArray[np.float32]
    names: list[str]
    classes: list[str]
    """of each image, "" where there are none"""
    splits: Sequence[Split] = ()
    """where they are read from, one after the other; from files of their names where there are none"""

    def read(self, place: int) -> Image.Image:
        for split in self.splits:
            if place < len(split):
                return split.read(place, "RGB")
            place -= len(split)
        return read_image(Path(self.names[place]), "RGB")


def neighbors(
    model: str,
    images: Sequence[str],
    of: str,
    out: str = "neighbors",
    count: PositiveInt = 5,
    weights: str | None = None,
    data_root: str | None = None,
    batch_size: PositiveInt = 64,
    workers: Workers = 2,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Find the images of DATA that are most like others, by cosine similarity of their features.

    An image that lies in DATA itself is its own nearest neighbor.

    Args:
        model: folder of a classification run, or a model by timm's name.
        images: what neighbors are sought of: image files, folders or globs.
        of: where they are sought: DATA as in training, all of its splits, or a file that atconv embed wrote
            with the same model.
        out: folder for neighbors.csv and neighbors.png.
        count: neighbors of each image.
        weights: weights file of a named model; default: timm's pretrained weights.
        data_root: folder of a named timm dataset.
        batch_size: images in one forward pass.
        workers: data-loading processes.
        device: where to run.

    Returns:
        neighbors.csv.

    Raises:
        FileNotFoundError, ValueError: no such model, images or DATA, or a file of another model.
    """
    folder = Path(out)
    if folder.exists():
        raise ValueError(f"{folder} exists already: name another folder with --out, or remove it")
    backbone = Backbone.open(model, weights, device)
    queries = backbone.embed_files(images, batch_size, workers)
    if is_embeddings(Path(of)):
        features, names = read_embeddings(Path(of), backbone.digest)
        searched = _Images(features, names, [""] * len(names))
    else:
        searched = _embed_data(backbone, of, data_root, batch_size, workers)
    similarities, places = nearest(queries.features, searched.features, count)
    rows = [
        {
            "image": queries.split.name(i),
            "rank": rank,
            "neighbor": searched.names[place],
            "class": searched.classes[place],
            "similarity": f"{similarity:.4f}",
        }
        for i in range(len(places))
        for rank, (place, similarity) in enumerate(zip(places[i], similarities[i], strict=True), 1)
    ]
    folder.mkdir(parents=True)
    write_rows(folder / "neighbors.csv", rows)
    _plot(queries.split, searched, similarities, places, folder / "neighbors.png")
    looked = count_of(len(searched.names), "image")
    logger.info("neighbors of %s among %s in %s", count_of(len(places), "image"), looked, folder)
    return folder / "neighbors.csv"


def _embed_data(
    backbone: Backbone, data: str, data_root: str | None, batch_size: int, workers: int
) -> _Images:
    """All splits of DATA."""
    parts, classes = [], []
    for name, source in open_sources(DataConfig(data=data, data_root=data_root)).items():
        part = backbone.embed(Split(source, range(len(source))), name, batch_size, workers)
        skipped = [*(SkippedFile(name, *each) for each in source.left_out), *part.skipped]
        name_skipped(skipped)
        parts.append(part)
        classes += [_class_names(part.split, i) for i in range(len(part.split))]
    names = [part.split.name(i) for part in parts for i in range(len(part.split))]
    return _Images(np.concatenate([p.features for p in parts]), names, classes, [p.split for p in parts])


def _class_names(split: Split, place: int) -> str:
    target: Any = split.source.target(int(split.indices[place]))
    chosen = np.flatnonzero(target) if split.source.multi_label else [target]
    return "; ".join(split.source.classes[i] for i in chosen)


def _plot(
    queries: Split, searched: _Images, similarities: NDArray[Any], places: NDArray[Any], path: Path
) -> None:
    """The first queries, a row each, and their neighbors next to them."""
    rows, columns = min(len(places), _SHOWN_QUERIES), 1 + min(places.shape[1], _SHOWN_NEIGHBORS)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 2.3 * rows + 0.5), layout="constrained", squeeze=False
    )
    some = f", the first {rows} of {len(places)} images" if rows < len(places) else ""
    figure.suptitle(f"Image, and its neighbors with their similarity{some}", fontsize=11)
    for row in range(rows):
        axes[row, 0].imshow(queries.read(row, "RGB"))
        axes[row, 0].set_title(shorten(Path(queries.name(row)).name, 20), fontsize=9, weight="bold")
        for axis, place, similarity in zip(axes[row, 1:], places[row], similarities[row], strict=False):
            try:
                axis.imshow(searched.read(int(place)))
            except (OSError, ValueError):  # a file of embeddings may outlive its images
                axis.text(0.5, 0.5, "not there", ha="center", va="center", fontsize=9)
            name = searched.classes[place] or Path(searched.names[place]).name
            axis.set_title(f"{shorten(name)}\n{similarity:.3f}", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    save(figure, path)
