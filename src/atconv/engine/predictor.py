"""One face for the trained model of a run, whatever its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typing_extensions import Self

from atconv.engine.config import TrainConfig
from atconv.engine.devices import resolve_device
from atconv.engine.options import Count, NonNegative, Percent, PositiveInt, check_value
from atconv.engine.reading import naming_damage, read_json
from atconv.engine.run import Run
from atconv.engine.tables import Table, speed_text
from atconv.io import write_json, write_rows

__all__ = ["ImageLike", "ImagePredictor", "Metrics", "Predictor", "Result"]

ImageLike = str | Path | Image.Image | NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model says of one image."""

    image: str
    """its file, or its number in the sequence of images"""
    error: str | None = None
    """why it could not be read; all else is then empty"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def columns(self) -> Sequence[str]:
        """Columns of `rows`."""
        return ["image"]

    def rows(self) -> list[Sequence[str]]:
        """Rows of a table for a person."""
        return [[self.image]]

    def csv_rows(self) -> list[Sequence[Any]]:
        """Rows of a table for a program."""
        return [[self.image]]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How good a model is on one split. Percentages are 0…100."""

    hidden: ClassVar[tuple[str, ...]] = ()
    """fields that `to_dict` leaves out, such as arrays"""
    records: ClassVar[tuple[str, ...]] = ()
    """fields that `to_dict` gives as dicts"""
    counts: ClassVar[tuple[str, ...]] = ()
    """columns of `per_class` that are counts; the others are percentages"""

    split: str
    images: Count
    """how many"""
    images_per_second: NonNegative
    """reading, transform and model together"""
    trained_on: Count = 0
    """how many of the images the model was trained on"""
    per_class: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: value for name, value in vars(self).items() if name not in self.hidden}

    def tables(self, title: str) -> list[Table]:
        """What to show a person."""
        return []

    def last_rows(self) -> list[tuple[str, str]]:
        """How many images, and how fast: the end of a table of metrics."""
        return [("images", str(self.images)), ("speed", speed_text(self.images_per_second))]

    def settings(self) -> dict[str, Any]:
        """Options that the metrics depend on, as `to_dict` names them. Metrics of other settings are not
        written over."""
        return {}


_ABOUT_RUN = {  # what metrics.json of a run says besides
    "best_epoch": Count,
    "epochs": Count,
    "steps": Count,
    "val_loss": float,
    "seconds": NonNegative,
    "parameters": Count,
    "macs": Count,
}

R = TypeVar("R", bound=Result)
M = TypeVar("M", bound=Metrics)
P = TypeVar("P")


class Predictor(ABC, Generic[R, M]):
    """A trained model with what is needed to use it. `atconv.load(RUN)` makes one for every task.

    >>> predictor = atconv.load("runs/mine")
    >>> predictor("cat.jpg")[0].classes
    >>> predictor.evaluate().top1

    Calling it and `evaluate` write no files; the `save_...` methods do.

    Args:
        run: the run's folder.
        model: in eval mode, on the CPU.
        transform: any PIL image → the model's input, C H W.
        classes: names of the classes.
        config: how the run was trained; None where its config.yaml is not there.
    """

    task: ClassVar[str]
    metrics_class: ClassVar[type[Metrics]]
    """what `evaluate` gives"""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        transform: Callable[[Image.Image], Any],
        classes: list[str],
        config: TrainConfig | None,
    ) -> None:
        self.run, self.model, self.classes, self.config = run, model.eval(), classes, config
        self.transform: Any = transform
        self.device = torch.device("cpu")

    @classmethod
    @abstractmethod
    def open(cls, run: Run) -> Self:
        """The best model of a run.

        Raises:
            ValueError: it is a run of another task, no epoch of it has finished, or its weights are damaged.
        """

    def to(self, device: str | torch.device) -> Self:
        """Move the model; "auto" is the accelerator of this machine if it has one."""
        self.device = device if isinstance(device, torch.device) else resolve_device(device)
        self.model.to(self.device)
        return self

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> list[R]:
        """Results: of images, or new images of a generator."""

    @abstractmethod
    def evaluate(self, data: str | None = None, split: str = "auto", **options: Any) -> M:
        """Metrics on a split of DATA, the run's own by default.

        Args:
            data: DATA as in training. Of the run's own, or a copy or part of it, its saved splits are used.
            split: train, val, test or all; "auto" takes test, else val, else all. Metrics say how many of the
                images were trained on.

        Raises:
            FileNotFoundError, ValueError: no such data or split, or classes that the run does not know.
        """

    def read_metrics(self, path: Path) -> dict[str, Any]:
        """What metrics.json of the run, or of an evaluation of it, says.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged: a value that such metrics cannot have, or other classes.
        """
        types = get_type_hints(self.metrics_class, include_extras=True)
        records = dict.fromkeys(self.metrics_class.records, dict | None)
        content = read_json(path, _ABOUT_RUN | types | records, partial=True)
        rows = content.get("per_class", [])
        with naming_damage(path):
            if not content:
                raise ValueError("it is empty")
            if rows and [row.get("class") for row in rows] != self.classes:
                raise ValueError("per_class has other classes than the model")
            for name, value in (item for row in rows for item in row.items() if item[0] != "class"):
                kind = Count if name in self.metrics_class.counts else Percent | None
                check_value(f"{name} in per_class", value, kind)
            if len({tuple(row) for row in rows}) > 1:
                raise ValueError("per_class has rows of different columns")
        return content

    def publication(self, about: P) -> P:
        """What is published with the run: what its task says of any run, and what is special in this one."""
        return about

    def save_evaluation(self, metrics: M, folder: Path, about: dict[str, Any] | None = None) -> None:
        """Write per_class.csv, what else the task has, and last metrics.json, with `about` before the metrics
        in it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "per_class.csv", metrics.per_class)
        self.save_results(metrics, folder)
        write_json(folder / "metrics.json", {**(about or {}), **metrics.to_dict()})

    def save_results(self, metrics: M, folder: Path) -> None:
        """Write the task's own tables and plots of an evaluation."""

    @abstractmethod
    def export(self, **options: Any) -> Any:
        """Write the model as a file for elsewhere, compare it with the model and time it; options are those
        of `atconv.tasks.common.export.export`.

        Raises:
            ValueError: there is no such file for this model.
        """


class ImagePredictor(Predictor[R, M]):
    """The face of a model that says something of images."""

    result_class: ClassVar[type[Any]]
    """of the results"""
    draws: ClassVar[bool] = False
    """whether `save_predictions` draws results"""
    csv_columns: ClassVar[Sequence[str]] = ()
    """columns of the results' `csv_rows`"""

    def __call__(self, images: ImageLike | Sequence[ImageLike], **options: Any) -> list[R]:
        """Results of one image or several: files, PIL images, or arrays H W, H W 1 or H W 3 of uint8.

        Raises:
            FileNotFoundError, ValueError: an image cannot be read.
        """
        single = isinstance(images, (str, Path, Image.Image, np.ndarray))
        several: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
        if not several:
            return []
        return self.infer([self.open_image(image) for image in several], _names(several), **options)

    def predict(self, images: Iterable[ImageLike], batch_size: int = 32, **options: Any) -> Iterator[R]:
        """Results one after the other, in order. An image that cannot be read has `error` set; the
        others are not affected.

        Raises:
            ValueError: `batch_size` < 1.
        """
        check_value("batch_size", batch_size, PositiveInt)
        remaining, count = iter(images), 0
        while batch := list(islice(remaining, batch_size)):
            names = _names(batch, count)
            count += len(batch)
            opened = [self._try_open(image) for image in batch]
            readable = [i for i, image in enumerate(opened) if not isinstance(image, str)]
            inferred: Iterator[R] = iter(())
            if readable:
                inputs: list[Any] = [opened[i] for i in readable]
                inferred = iter(self.infer(inputs, [names[i] for i in readable], **options))
            for name, image in zip(names, opened, strict=True):
                failed = isinstance(image, str)
                yield self.result_class(image=name, error=image) if failed else next(inferred)

    def _try_open(self, image: ImageLike) -> Image.Image | str:
        """An image, or why it cannot be read."""
        try:
            return self.open_image(image)
        except (ValueError, OSError) as error:
            return str(error)

    @abstractmethod
    def choose_split(self, data: str | None, split: str) -> tuple[str, Any]:
        """A split of DATA, the run's own by default, and its name. `read(position, mode)` gives its images.

        Raises:
            FileNotFoundError, ValueError: no such data or split, or classes that the run does not know.
        """

    def examples(self, count: int) -> list[Image.Image]:
        """Some validation images of the run's own data, evenly spaced, in color, without unreadable ones.

        Raises:
            FileNotFoundError, ValueError: the data or the split is not there.
        """
        _, images = self.choose_split(None, "val")
        examples = []
        last = len(images) - 1
        for i in np.linspace(0, last, min(count, last + 1)).round().astype(int).tolist():
            with suppress(OSError, ValueError):
                examples.append(images.read(i, "RGB"))
        return examples

    @abstractmethod
    def open_image(self, image: ImageLike) -> Image.Image:
        """Read an image as the model was trained to see it: upright, RGB or gray."""

    @abstractmethod
    def infer(self, images: Sequence[Image.Image], names: Sequence[str], **options: Any) -> list[R]:
        """Results of images from `open_image`."""

    def save_predictions(
        self, results: Iterable[R], folder: str | Path, protected: Iterable[str | Path] = ()
    ) -> list[R]:
        """Draw each result of an image file in FOLDER/NAME.png, as soon as it comes.

        >>> predictor.save_predictions(predictor.predict(files), "drawn")[0].plot

        Args:
            results: from calling the predictor, or from `predict`, which reads images only when they are
                needed.
            folder: made where it does not exist.
            protected: files that must not be written over, besides the images themselves.

        Returns:
            the results with the files' names. Those with an `error` are not drawn.

        Raises:
            ValueError: results of this task are not drawn, an image was no file, or would be written over.
        """
        raise ValueError(f"results of {self.task} are not drawn; print them or save their to_dict()")


def _names(images: Sequence[ImageLike], start: int = 0) -> list[str]:
    """Files by their path, others by their number."""
    return [str(image if isinstance(image, (str, Path)) else i) for i, image in enumerate(images, start)]
