"""`atconv probe`: how well a backbone's features tell classes apart, without training it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atconv.data.config import DataConfig
from atconv.data.run_images import RunImages, is_own_data, log_trained_on
from atconv.data.saved_split import read_split
from atconv.data.splits import Splits, load_splits, make_splits
from atconv.data.unreadable import TooManyUnreadable, log_skipped
from atconv.engine.options import PositiveInt, Seed, Workers
from atconv.engine.run import Run, next_run_dir
from atconv.engine.tables import Table, interval_text
from atconv.io import write_json
from atconv.tasks.classification.embedding import Backbone, Embedded, nearest
from atconv.tasks.classification.metrics import ClassificationMetrics, compute_metrics

__all__ = ["Probes", "probe"]

logger = logging.getLogger(__name__)

_NEIGHBORS = (1, 5, 20)
_STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # C of scikit-learn: large is weak


@dataclass(frozen=True)
class Probes:
    """Accuracy of simple classifiers on the features of a backbone."""

    backbone: str
    data: str
    split: str
    """that metrics are of"""
    train_images: int
    regularization: float
    """C of the linear probe, the one with the highest accuracy on validation images"""
    metrics: Mapping[str, ClassificationMetrics]
    """by classifier: 1-NN, 5-NN, 20-NN, linear"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("images", "top1", "top1_interval", "balanced_accuracy", "macro_f1")
        values = {k: {name: getattr(m, name) for name in names} for k, m in self.metrics.items()}
        return vars(self) | {"metrics": values}

    def table(self) -> Table:
        """What to show a person."""
        rows = [
            (name, interval_text(m.top1, m.top1_interval), *(value for _, value in m.class_means()))
            for name, m in self.metrics.items()
        ]
        note = " (C was chosen on them)" if self.split == "val" else ""
        images = next(iter(self.metrics.values())).images
        title = (
            f"features of {self.backbone} on {self.data}: {self.train_images} training images, "
            f"{images} of the {self.split} split{note}; linear: C = {self.regularization:g}"
        )
        return Table(title, ("probe", "accuracy  [95 % interval]", "balanced accuracy", "macro F1"), rows)


def probe(
    model: str,
    data: str,
    out: str | None = None,
    weights: str | None = None,
    data_root: str | None = None,
    batch_size: PositiveInt = 64,
    workers: Workers = 2,
    seed: Seed = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Probes:
    """Classify DATA by the features of a backbone: nearest neighbors, and a logistic regression.

    Neighbors are the 1, 5 and 20 nearest training images by cosine similarity. The regularization of the
    regression is chosen on the validation split. The backbone stays as it is.

    Args:
        model: folder of a classification run, or a model by timm's name.
        data: DATA as in training. Of a run's own its splits are used, else those DATA comes with, and what
            is missing is held out as in training.
        out: folder for probe.json and split.json (default: runs/DATA-probe-MODEL).
        weights: weights file of a named model; default: timm's pretrained weights.
        data_root: folder of a named timm dataset.
        batch_size: images in one forward pass.
        workers: data-loading processes.
        seed: of what is held out.
        device: where to run.

    Returns:
        metrics of each classifier on the test split, or on validation where there is none.

    Raises:
        FileNotFoundError, ValueError: no such model or DATA, several labels an image, or `out` exists.
    """
    backbone = Backbone.open(model, weights, device)
    config = DataConfig(data=data, data_root=data_root)
    folder = Run.create(out if out is not None else next_run_dir(data, f"probe-{backbone.name}"))
    try:
        splits = _open_splits(backbone, config, folder, seed)
        if splits["train"].source.multi_label:
            raise ValueError(f"{data} has several labels an image: a probe takes one class each")
        logger.info(splits.message)
        found = _run_probes(backbone, splits, data, config.max_skipped, batch_size, workers)
    except Exception as error:
        folder.discard(["skipped.csv"] if isinstance(error, TooManyUnreadable) else [])
        raise
    write_json(folder.path / "probe.json", found.to_dict())
    logger.info(found.table())
    logger.info("written to %s", folder.path / "probe.json")
    return found


def _open_splits(backbone: Backbone, config: DataConfig, folder: Run, seed: int) -> Splits:
    """Those of the run that the backbone is of, or new ones, saved in a folder."""
    predictor = backbone.predictor
    if predictor is None:
        return make_splits(config, folder.path, seed)
    if is_own_data(predictor.config, config.data) and predictor.run.split.is_file():
        return load_splits(predictor.config, predictor.run.path)  # type: ignore[arg-type]
    splits = make_splits(config, folder.path, seed)
    final = splits.final
    saved = read_split(folder.split)
    digests = saved.get("digests", {}).get(final, [""] * len(saved[final]))
    trained_on = RunImages(predictor.run).count_trained(saved[final], digests)
    log_trained_on(f"the {final} split of {config.data}", trained_on, len(digests))
    return splits


def _run_probes(
    backbone: Backbone, splits: Splits, data: str, limit: float, batch_size: int, workers: int
) -> Probes:
    final = splits.final
    embedded: dict[str, Embedded] = {}
    for name in dict.fromkeys(("train", "val", final)):
        embedded[name] = backbone.embed(splits[name], name, batch_size, workers)
        log_skipped(embedded[name].skipped, len(splits[name]), limit)
    labels = {name: np.array(each.split.labels) for name, each in embedded.items()}
    train, test = embedded["train"].features, embedded[final].features
    shares = _neighbor_shares(train, labels["train"], test, len(splits.classes))
    strength, shares["linear"] = _fit_linear(
        train, labels["train"], embedded["val"].features, labels["val"], test, len(splits.classes)
    )
    metrics = {
        name: compute_metrics(each, labels[final], splits.classes, 0.0, final)
        for name, each in shares.items()
    }
    return Probes(backbone.name, data, final, len(train), strength, metrics)


def _neighbor_shares(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], classes: int
) -> dict[str, NDArray[np.float32]]:
    """The share of each class (images × classes) among the k nearest training images, for each k. Of classes
    with as many, that of nearer images counts a little more."""
    _, places = nearest(test, train, max(_NEIGHBORS))
    found = {}
    for k in (k for k in _NEIGHBORS if k <= len(train)):
        votes = np.zeros((len(test), classes), np.float32)
        for rank in range(k):
            votes[np.arange(len(test)), labels[places[:, rank]]] += 1 + 1e-3 * (k - rank) / k
        found[f"{k}-NN"] = votes / votes.sum(1, keepdims=True)
    return found


def _fit_linear(
    train: NDArray[np.float32],
    labels: NDArray[np.int64],
    val: NDArray[np.float32],
    val_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    classes: int,
) -> tuple[float, NDArray[np.float32]]:
    """A logistic regression on standardized features: the C with the highest accuracy on validation images,
    of equals the smallest, and probabilities on the test images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best, best_score, strength = None, -1.0, 0.0
    for c in _STRENGTHS:
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(train, labels)
        score = fitted.score(val, val_labels)
        if score > best_score:
            best, best_score, strength = fitted, score, c
    assert best is not None
    shares = np.zeros((len(test), classes), np.float32)
    shares[:, best.classes_] = best.predict_proba(test)
    return strength, shares
