"""Labeled images that timm opens by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torchvision.datasets import DatasetFolder

from atconv.data.arrays import SharedItems
from atconv.data.config import DataConfig
from atconv.data.images import Mode, read_image, upright
from atconv.data.sources.base import ImageSource

__all__ = ["TimmSource", "is_timm_name", "open_timm"]


def is_timm_name(data: Path) -> bool:
    return str(data).startswith(("torch/", "hfds/")) and not data.exists()


def open_timm(config: DataConfig) -> dict[str, ImageSource]:
    names = {"train": config.train_split, "val": config.val_split, "test": config.test_split}
    if config.data.startswith("torch/") and config.val_split is None and config.test_split is None:
        names["test"] = "validation"  # what timm calls the test set of torchvision's datasets
    named = [name for name in names.values() if name is not None]
    if len(set(named)) < len(named):
        raise ValueError(f"train_split, val_split and test_split must differ, got {', '.join(named)}")
    return {
        split: TimmSource(config.data, config.data_root, name)
        for split, name in names.items()
        if name is not None
    }


class TimmSource(ImageSource):
    """One split of a map-style dataset by timm's name: torch/… or hfds/….

    Raises:
        ValueError: timm cannot open it (not there, unknown name, missing package).
    """

    def __init__(self, name: str, root: str | None, split: str) -> None:
        dataset = open_timm_dataset(name, root, split)
        self._dataset = dataset
        # timm's own ImageDataset replaces an unreadable image by the next one: read below it.
        self._reader = getattr(dataset, "reader", None)
        # torchvision's folders convert images their own way: read their files as all others.
        self._files = isinstance(dataset, DatasetFolder)
        self.checkable = self._reader is not None or self._files
        labels = self._read_labels()
        for attribute, value in vars(dataset).items():  # for workers to share
            if isinstance(value, list) and len(value) == len(dataset):
                setattr(dataset, attribute, SharedItems(value))
        super().__init__(f"{name}, split {split},", _class_names(dataset, self._reader, labels), labels)

    def _read_labels(self) -> list[int]:
        for attribute in ("targets", "labels", "_labels"):
            labels = getattr(self._dataset, attribute, None)
            if labels is not None and len(labels) == len(self._dataset):
                return [int(label) for label in labels]
        if self._reader is not None and hasattr(self._reader, "iter_targets"):
            return [int(label) for label in self._reader.iter_targets()]
        return [int(self._item(i)[1]) for i in range(len(self._dataset))]

    def read(self, index: int, mode: Mode) -> Image.Image:
        image = self._item(index)[0]
        return upright(image, mode) if isinstance(image, Image.Image) else read_image(image, mode)

    def file(self, index: int) -> Path | BinaryIO:
        item = self._item(index)[0]
        return Path(item) if self._files else item

    def _item(self, index: int) -> tuple[Any, Any]:
        source = self._reader or (self._dataset.samples if self._files else self._dataset)
        return source[index]


def open_timm_dataset(name: str, root: str | None, split: str) -> Any:
    """`timm.data.create_dataset` with every failure explained in one line."""
    from timm.data import create_dataset

    if root is not None and not Path(root).exists():
        raise ValueError(f"data_root {root} does not exist")
    if name.startswith("torch/") and root is None:
        raise ValueError(f"{name} needs --data-root, the folder its files lie in")
    try:
        # No color mode: images are converted here, as in prediction.
        options: dict[str, Any] = {"input_img_mode": None}
        return create_dataset(name, root=root, split=split, **options)
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is not installed: {error}") from error
    except (AssertionError, LookupError, RuntimeError, ValueError, OSError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if name.startswith("torch/") and isinstance(error, RuntimeError):  # it is not there
            reason += ". Put its files there"
            script = Path(__file__).parents[4] / "studies" / "datasets" / f"{name.removeprefix('torch/')}.py"
            if script.is_file():  # in a checkout
                reason += f", as python -m studies.datasets.{script.stem} {root} does"
        raise ValueError(f"timm cannot open {name}, split {split}, in {root}: {reason}") from error


def _class_names(dataset: Any, reader: Any, labels: Sequence[int]) -> list[str]:
    names = getattr(dataset, "classes", None)
    if names:
        return [str(name) for name in names]
    known = getattr(reader, "class_to_idx", None)
    if known:
        return [str(name) for name, _ in sorted(known.items(), key=lambda item: item[1])]
    return [str(i) for i in range(max(labels) + 1)]
