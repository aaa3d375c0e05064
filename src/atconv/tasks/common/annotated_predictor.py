"""The trained model of a run that was trained on annotated images: opened, evaluated, drawn."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from atconv.data.annotated import AnnotatedSplit
from atconv.data.folders import SAVED_SPLIT, SPLITS, choose_split
from atconv.data.formats import Annotation, annotated_splits
from atconv.data.images import open_image
from atconv.engine.predictor import ImageLike, ImagePredictor, Metrics, Result
from atconv.engine.reading import naming_damage, read_json
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.io import write_json, write_rows
from atconv.tasks.common.annotated_config import AnnotatedConfig
from atconv.tasks.common.drawing import PlotFiles

__all__ = ["AnnotatedMetrics", "AnnotatedPredictor", "DrawnResult"]


@dataclass(frozen=True, kw_only=True)
class DrawnResult(Result):
    """A result that can be drawn."""

    plot: str | None = None
    """the file that it is drawn in, once it is"""


@dataclass(frozen=True, kw_only=True)
class AnnotatedMetrics(Metrics):
    """Metrics, and the images that they are of."""

    source: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "source"}


logger = logging.getLogger(__name__)

R = TypeVar("R", bound=DrawnResult)
M = TypeVar("M", bound=AnnotatedMetrics)
S = TypeVar("S", bound=AnnotatedSplit)


class AnnotatedPredictor(ImagePredictor[R, M], Generic[R, M, S]):
    """What predictors of detection and segmentation share."""

    draws = True
    annotation: ClassVar[Annotation]
    """what its data are annotated with"""
    command: ClassVar[str]
    """that trains such a run"""
    config_class: ClassVar[type[AnnotatedConfig]]
    result_class: ClassVar[type[Any]]
    metrics_class: ClassVar[type[Any]]
    model_config: dict[str, Any]
    """what config.json says"""

    @classmethod
    @abstractmethod
    def build(cls, content: dict[str, Any]) -> tuple[nn.Module, Any]:
        """Model and transform of a config.json."""

    @staticmethod
    @abstractmethod
    def build_model(arguments: dict[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A model in the layout that convolutions run fastest in.

        Args:
            arguments: `model_arguments` of a configuration.
            state_dict: weights of a classifier, which the backbone starts from.
        """

    @abstractmethod
    def open_split(self, data: str, split: str, **options: Any) -> dict[str, S]:
        """One split of DATA with its name, checked; with classes that the run knows."""

    @abstractmethod
    def measure(self, split: S, batch_size: int, **options: Any) -> dict[str, Any]:
        """The fields of the metrics that are this task's own."""

    @abstractmethod
    def plot_split(self, split: S, path: Path) -> None:
        """Draw predictions for the first images."""

    @abstractmethod
    def save_prediction(self, result: R, image: Image.Image, file: Path) -> R:
        """Draw a result in a PNG file."""

    @classmethod
    def open(cls, run: Run) -> Self:
        """The best model of a run.

        Raises:
            ValueError: it is a run of another task, no epoch of it has finished, or its weights are damaged.
        """
        state_dict = run.read_weights()
        content = read_json(run.model_config, {"label_names": list[str]}, inside="_atconv")
        if content.get("task") != cls.task:
            raise ValueError(f"{run.path} is not a run of {cls.command}")
        with naming_damage(run.path):
            model, transform = cls.build(content)
            model.load_state_dict(state_dict)
        config = read_config(run, cls.config_class, cls.task) if run.config.is_file() else None
        predictor = cls(run, model, transform, content["label_names"], config)
        predictor.model_config = content
        return predictor

    def open_image(self, image: ImageLike) -> Image.Image:
        return open_image(image, self.transform.mode)

    def unreadable(self, name: str, error: str) -> R:
        return self.result_class(image=name, error=error)

    def choose_split(
        self, data: str | None, split: str, images: str | None = None, **options: Any
    ) -> tuple[str, S]:
        """The split to evaluate on and its name: of the run's own DATA the saved one."""
        config: Any = self.config
        own = config is not None and Path(data or config.data).resolve() == Path(config.data).resolve()
        options["images"] = images or (config.images if own else None)
        if own and self.run.split.is_file():
            return self._saved_split(config.data, split, **options)
        if data is None:
            raise ValueError(f"{self.run.path} does not say what it was trained on: give DATA")
        [(name, opened)] = self.open_split(data, split, skip_unreadable=True, **options).items()
        for file, reason in opened.skipped:
            logger.warning("left out %s: %s", file, reason)
        return name, opened

    def _saved_split(self, data: str, split: str, **options: Any) -> tuple[str, S]:
        """A split of the run's own DATA and its name, as split.json says."""
        saved = read_json(self.run.split, SAVED_SPLIT)
        name = choose_split([name for name in SPLITS if name in saved], split, data)
        source = name if name in annotated_splits(self.annotation, data, options["images"]) else "train"
        opened = self.open_split(data, source, skip_unreadable=True, **options)[source]
        positions = {image: position for position, image in enumerate(opened.names)}
        missing = [image for image in saved[name] if image not in positions]
        if missing:
            raise ValueError(
                f"{len(missing)} images of the run's split ({self.run.split}) are no longer in {data}: "
                f"{missing[0]!r}"
            )
        return name, opened.take([positions[image] for image in saved[name]])

    def evaluate_on(self, name: str, split: S, batch_size: int, **options: Any) -> M:
        """Metrics on images that are open already."""
        started = time.perf_counter()
        values = self.measure(split, batch_size, **options)
        speed = len(split) / (time.perf_counter() - started)
        return self.metrics_class(
            split=name, images=len(split), images_per_second=speed, source=split, **values
        )

    def save_evaluation(self, metrics: M, folder: Path, about: dict[str, Any] | None = None) -> None:
        """Write per_class.csv, predictions.png, and last metrics.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "per_class.csv", metrics.per_class)
        self.plot_split(metrics.source, folder / "predictions.png")
        write_json(folder / "metrics.json", {**(about or {}), **metrics.to_dict()})

    def save_predictions(
        self, results: Iterable[R], folder: str | Path, protected: Iterable[str | Path] = ()
    ) -> list[R]:
        files = PlotFiles(Path(folder), protected)
        return [result if result.error else self._save_prediction(result, files) for result in results]

    def _save_prediction(self, result: R, files: PlotFiles) -> R:
        image = Path(result.image)
        if not image.is_file():
            raise ValueError(f"image {image} is no file: only results of files are drawn")
        file = files.add(image)
        file.parent.mkdir(parents=True, exist_ok=True)
        return self.save_prediction(result, self.open_image(image), file)
