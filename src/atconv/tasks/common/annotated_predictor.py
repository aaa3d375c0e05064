"""The trained model of a run that was trained on annotated images: opened, evaluated, drawn."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from atconv.data.annotated import AnnotatedSplit, batches_of_equal_size
from atconv.data.folders import SPLITS, choose_split
from atconv.data.formats import Annotation, annotated_splits
from atconv.data.images import open_image
from atconv.data.orientation import Exif
from atconv.data.run_images import RunImages, is_own_data, log_trained_on
from atconv.data.saved_split import read_split
from atconv.data.unreadable import SkippedFile, list_skipped, log_skipped
from atconv.engine.options import PositiveInt, Workers, check_value
from atconv.engine.predictor import ImageLike, ImagePredictor, Metrics, Result
from atconv.engine.progress import progress
from atconv.engine.reading import check_weights, naming_damage, read_json
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.models.backbone import check_model_name
from atconv.tasks.common.annotated_config import AnnotatedConfig
from atconv.tasks.common.drawing import PlotFiles
from atconv.tasks.common.model_file import check_classes, check_normalization

__all__ = ["AnnotatedMetrics", "AnnotatedPredictor", "DrawnResult"]

logger = logging.getLogger(__name__)

_MODEL = {"backbone": str, "num_classes": PositiveInt, "in_chans": PositiveInt, "backbone_args": dict | None}


@dataclass(frozen=True, kw_only=True)
class DrawnResult(Result):
    """A result that can be drawn."""

    plot: str | None = None
    """the file that it is drawn in, once it is"""


@dataclass(frozen=True, kw_only=True)
class AnnotatedMetrics(Metrics):
    """Metrics, and the images that they are of."""

    hidden = ("source",)

    exif: Exif | None = None
    """what annotations of images with an EXIF orientation belong to; None: sizes decide"""
    source: Any = field(default=None, repr=False, compare=False)

    def settings(self) -> dict[str, Any]:
        return {"exif": self.exif}


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
    part: ClassVar[str]
    """name of the model's arguments in config.json"""
    config_class: ClassVar[type[AnnotatedConfig]]
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
    def open_split(self, data: str, split: str, **settings: Any) -> dict[str, S]:
        """One split of DATA with its name, checked, without images that cannot be read; with classes that the
        run knows."""

    def configured(self) -> dict[str, Any]:
        """The options that metrics depend on, as the run was configured."""
        return {"exif": getattr(self.config, "exif", None)}

    def data_options(self) -> dict[str, Any]:
        """The task's own options of its formats, as the run was configured."""
        return {}

    @abstractmethod
    def measure(
        self, split: S, batches: Iterable[list[int]], workers: int, **settings: Any
    ) -> dict[str, Any]:
        """The fields of the metrics that are this task's own, from batches of positions that processes
        load."""

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
        with naming_damage(run.model_config, f"its {cls.part} makes no model"):
            cls._check_model_config(content)
            model, transform = cls.build(content)
        check_weights(model, {name: tensor.shape for name, tensor in state_dict.items()}, run.model_config)
        model.load_state_dict(state_dict)
        config = read_config(run, cls.config_class, cls.task) if run.config.is_file() else None
        predictor = cls(run, model, transform, content["label_names"], config)
        predictor.model_config = content
        return predictor

    @classmethod
    def _check_model_config(cls, content: dict[str, Any]) -> None:
        """Raise ValueError where config.json has values that the options of its names would not take, or that
        contradict each other."""
        check_value(cls.part, content.get(cls.part), dict)
        model = content[cls.part]
        for name, kind in _MODEL.items():
            check_value(f"{name} in {cls.part}", model.get(name), kind)
        check_model_name(model["backbone"])
        check_classes(content["label_names"], model["num_classes"])
        hints = get_type_hints(cls.config_class, include_extras=True)
        parts = [content, *(part for part in content.values() if isinstance(part, dict))]
        for part in parts:
            for name, value in (item for item in part.items() if item[0] in hints):
                check_value(name, value, hints[name])
            check_normalization(model["in_chans"], part.get("mean"), part.get("std"))

    def open_image(self, image: ImageLike) -> Image.Image:
        return open_image(image, self.transform.mode)

    def evaluate_split(
        self, data: str | None, split: str, images: str | None, batch_size: int, workers: int, **chosen: Any
    ) -> M:
        """What `evaluate` does in both tasks. Images that cannot be read are left out up to the limit of the
        run."""
        check_value("batch_size", batch_size, PositiveInt)
        check_value("workers", workers, Workers)
        name, opened = self.choose_split(data, split, images, **chosen)
        skipped = [SkippedFile(name, *row) for row in opened.skipped]
        limit = getattr(self.config, "max_skipped", AnnotatedConfig.max_skipped)
        log_skipped(skipped, len(opened) + len(skipped), limit)
        return self.evaluate_on(name, opened, batch_size, workers, **chosen)

    def evaluate_on(self, name: str, split: S, batch_size: int, workers: int, **chosen: Any) -> M:
        """Metrics on images that are open already."""
        settings, started = self._settings(chosen), time.perf_counter()
        batches = progress(batches_of_equal_size(split, range(len(split)), batch_size), "evaluating")
        values = self.measure(split, batches, workers, **settings)
        speed = len(split) / (time.perf_counter() - started)
        return self.metrics_class(
            split=name, images=len(split), images_per_second=speed, trained_on=split.trained_on, source=split,
            **settings, **values,
        )  # fmt: skip

    def _settings(self, chosen: dict[str, Any]) -> dict[str, Any]:
        return self.configured() | {name: value for name, value in chosen.items() if value is not None}

    def choose_split(
        self, data: str | None, split: str, images: str | None = None, **chosen: Any
    ) -> tuple[str, S]:
        """The split to evaluate on and its name: of the run's DATA, a copy or a part of it, the saved one."""
        config: Any = self.config
        same = is_own_data(config, data)
        settings = {**self._settings(chosen), "images": images or (config.images if same else None)}
        if same and self.run.split.is_file():
            name, opened = self._saved_split(config.data, split, settings)
        elif data is None:
            raise ValueError(f"{self.run.path} does not say what it was trained on: give DATA")
        else:
            name, opened = self._other_split(data, split, settings)
        log_trained_on(data or config.data, opened.trained_on, len(opened))
        return name, opened

    def _saved_split(self, data: str, split: str, settings: dict[str, Any]) -> tuple[str, S]:
        """A split of the run's DATA and its name, as split.json says. What is gone since is left out."""
        saved = read_split(self.run.split)
        lists = {name: saved[name] for name in SPLITS if name in saved}
        own = annotated_splits(self.annotation, data, settings["images"], **self.data_options())
        if list(own) == ["train"]:
            lists["all"] = sorted(chain.from_iterable(lists.values()))
            if len({*lists["all"]}) < len(lists["all"]):
                raise ValueError(f"{self.run.split} is damaged: an image is in two splits")
        name = choose_split(lists, split, data)
        source = name if name in own else "train"
        opened: Any = self.open_split(data, source, **settings)[source]
        positions = {image: position for position, image in enumerate(opened.names)}
        reasons, images = dict(opened.skipped), lists[name]
        gone = f"no longer in {data}, where {self.run.split} has it"
        skipped = [(i, reasons.get(i, f"{i!r} is {gone}")) for i in images if i not in positions]
        there = [image for image in images if image in positions]
        trained = set(saved["train"]) if name in ("train", "all") else set()
        taken = opened.take([positions[image] for image in there])
        return name, replace(taken, skipped=skipped, trained_on=len(trained & set(there)))

    def _other_split(self, data: str, split: str, settings: dict[str, Any]) -> tuple[str, S]:
        """A split of DATA that is not the run's. Of a copy or part of the run's, its own."""
        names = annotated_splits(self.annotation, data, settings["images"], **self.data_options())
        lone = list(names) == ["train"]
        name = "train" if lone else choose_split(names, split, data)
        [opened] = self.open_split(data, name, **settings).values()
        known, images = RunImages(self.run), (opened.names, opened.digests)
        opened = replace(opened, trained_on=known.count_trained(*images))
        known.log_namesakes(data, *images)
        if not lone:
            return name, opened
        splits = {"all": opened}
        for own, positions in (known.positions(*images) or {}).items():
            trained_on = len(positions) if own == "train" else 0
            splits |= {own: replace(opened.take(positions), trained_on=trained_on)} if positions else {}
        name = choose_split(splits, split, data)
        return name, splits[name]

    def save_results(self, metrics: M, folder: Path) -> None:
        """Write predictions.png, and skipped.csv where images were left out."""
        skipped = [SkippedFile(metrics.split, *row) for row in metrics.source.skipped]
        list_skipped(skipped, folder, self.run.path)
        self.plot_split(metrics.source, folder / "predictions.png")

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
