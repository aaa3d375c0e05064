"""What a classifier is evaluated on, and what is said of its classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atconv.data.folders import choose_split
from atconv.data.formats import LabelFormat, open_sources, recognize
from atconv.data.imbalance import Occurrences
from atconv.data.loaders import readable_loader
from atconv.data.run_images import is_own_data, known_splits, log_trained_on, with_all
from atconv.data.splits import Split, load_splits
from atconv.data.tables.source import TABLE_OPTIONS
from atconv.data.unreadable import SkippedFile, log_skipped
from atconv.engine.run import Run
from atconv.tasks.classification.config import ClassificationConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ReadableBatches", "data_config", "imbalance_advice", "occurrences", "open_split"]

logger = logging.getLogger(__name__)


def imbalance_advice(config: ClassificationConfig, multi_label: bool = False) -> str:
    """What is done about imbalanced classes, or can be."""
    if multi_label:
        return "Look at average precision by class; --class-weights and --sampler weigh rare classes more"
    if config.evens_out:
        return "Classes are evened out, and the best epoch is picked by balanced accuracy"
    without = ", without mixup and cutmix," if config.mixes else ""
    return (
        "Each image counts as it is; look at balanced accuracy and macro F1. --sampler balanced, or "
        f"--class-weights inverse{without} weighs rare classes more and picks the best epoch by balanced "
        "accuracy"
    )


def occurrences(split: Split) -> Occurrences:
    """Which classes occur in which images."""
    return Occurrences.of_labels(split.source.classes, split.source.labels[split.indices])


def data_config(config: ClassificationConfig) -> dict[str, Any]:
    """timm's data configuration of a run."""
    mean, std = config.normalization()
    return {
        "input_size": (config.in_chans, config.image_size, config.image_size),
        "mean": mean,
        "std": std,
        "crop_pct": config.crop_pct,
        "interpolation": "bilinear" if config.interpolation == "random" else config.interpolation,
    }


def open_split(
    run: Run,
    config: ClassificationConfig | None,
    classes: list[str],
    data: str | None,
    split: str,
    data_root: str | None = None,
    images: str | None = None,
    multi_label: bool = False,
) -> tuple[str, Split]:
    """A split of DATA by name, "auto" for the one to evaluate, and its name: the run's own where DATA is the
    run's or not given, else what DATA comes with.

    Raises:
        ValueError: DATA has no such split, or names other classes.
    """
    if data is None:
        if config is None:
            raise ValueError(f"{run.path} has no config.yaml that says what it was trained on: give DATA")
        data = config.data
    elsewhere = images is not None or data_root not in (None, _root(config))
    if is_own_data(config, data) and run.split.is_file() and not elsewhere:
        splits = with_all(load_splits(config, run.path).by_name)  # type: ignore[arg-type]
        name = choose_split(splits, split, data)
    else:
        root = data_root or (_root(config) if config is not None and config.data == data else None)
        options = _table_options(config, data, images)
        sources = open_sources(ClassificationConfig(data=data, data_root=root, **options))
        for source in sources.values():
            if multi_label:
                source.to_multi_label()
            elif source.multi_label:
                raise ValueError(f"{data} has several labels an image, and {run.path} gives one class each")
            source.relabel(classes)
            for remark in source.remarks:
                logger.warning(remark)
        if list(sources) == ["train"]:
            splits = known_splits(run, sources["train"])
            name = choose_split(splits, split, data)
        else:
            name = choose_split(sources, split, data)
            splits = {name: known_splits(run, sources[name])["all"]}
        source = sources[name if name in sources else "train"]
        left_out = [SkippedFile(name, *each) for each in source.left_out]
        log_skipped(left_out, len(source) + len(left_out), (config or ClassificationConfig()).max_skipped)
    log_trained_on(data, splits[name].trained_on, len(splits[name]))
    return name, splits[name]


def _table_options(config: ClassificationConfig | None, data: str, images: str | None) -> dict[str, Any]:
    """Options for DATA that is not the run's: those that the run's was read with, as far as they fit."""
    found = recognize(Path(data))
    unused = found.unused if isinstance(found, LabelFormat) else TABLE_OPTIONS
    names = [name for name in TABLE_OPTIONS if name not in unused]
    options = {} if config is None else {name: getattr(config, name) for name in names}
    return options if images is None else options | {"images": images}


def _root(config: ClassificationConfig | None) -> str | None:
    return None if config is None else config.data_root


class ReadableBatches:
    """Batches of the images of a split that can be read, in its order. Once they have been gone through,
    `split` holds those images, and `skipped` the files that are left out.

    Args:
        limit: the largest share of files that may be unreadable; None does not even name them.

    Raises:
        TooManyUnreadable: at the end, of more.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        transform: Any,
        batch_size: int,
        workers: int,
        limit: float | None,
        device: torch.device,
    ) -> None:
        self.name, self.split, self.limit = name, split, limit
        self.skipped: list[SkippedFile] = []
        self._loader = readable_loader(split, transform, transform.prepare, batch_size, workers, device)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split, unreadable = self.split, []
        for images, labels, failed in self._loader:
            unreadable += failed
            if len(labels):
                yield images, labels
        self.skipped = [SkippedFile(self.name, split.name(place), reason) for reason, place in unreadable]
        if self.limit is not None:
            log_skipped(self.skipped, len(split), self.limit)
        if unreadable:
            self.split = Split(split.source, np.delete(split.indices, [place for _, place in unreadable]))
