"""A trained classifier of one class an image or several: opened, shown images, evaluated."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from atconv.data.images import open_image
from atconv.data.splits import Split
from atconv.data.transforms import EvalTransform
from atconv.engine.options import PositiveInt, Share, Workers, check_value
from atconv.engine.predictor import ImageLike, ImagePredictor, Result
from atconv.engine.progress import progress
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.tasks.classification.augmentation import Tta, test_time_views
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.data import ReadableBatches, open_split
from atconv.tasks.classification.metrics import ClassifierMetrics
from atconv.tasks.common.model_file import open_classifier

__all__ = ["Classification", "ClassifierPredictor"]


@dataclass(frozen=True, kw_only=True)
class Classification(Result):
    """The most probable classes of one image, in order."""

    classes: list[str] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def columns(self) -> Sequence[str]:
        return ["image", *(str(i + 1) for i in range(len(self.classes)))]

    def rows(self) -> list[Sequence[str]]:
        pairs = zip(self.classes, self.probabilities, strict=True)
        return [[self.image, *(f"{name} {100 * share:.1f} %" for name, share in pairs)]]

    def csv_rows(self) -> list[Sequence[Any]]:
        pairs = enumerate(zip(self.classes, self.probabilities, strict=True), 1)
        return [[self.image, rank, name, f"{share:.6f}"] for rank, (name, share) in pairs]


M = TypeVar("M", bound=ClassifierMetrics)


class ClassifierPredictor(ImagePredictor[Classification, M]):
    """What predictors of one class an image and of several share. `predictor(images, top=5)`; the model takes
    B C H W of `transform`'s results."""

    task = "classification"
    csv_columns = ("image", "rank", "class", "probability")
    multi_label: ClassVar[bool] = False
    """whether it gives an image several classes"""
    right_name: ClassVar[str]
    """what the share of `right` images is called"""

    @classmethod
    def open(cls, run: Run) -> Self:
        """The best model of a classification run.

        Raises:
            ValueError: no epoch of it has finished, or its weights are damaged.
        """
        model, content = open_classifier(run)
        config = read_config(run, ClassificationConfig, "classification") if run.config.is_file() else None
        return cls(run, model, EvalTransform(model.pretrained_cfg), content["label_names"], config)

    @property
    def max_skipped(self) -> float:
        """The largest share of unreadable files that an evaluation leaves out."""
        return getattr(self.config, "max_skipped", ClassificationConfig.max_skipped)

    def open_image(self, image: ImageLike) -> Image.Image:
        return open_image(image, self.transform.prepare.mode)

    def choose_split(
        self, data: str | None, split: str, data_root: str | None = None, images: str | None = None
    ) -> tuple[str, Split]:
        config: Any = self.config
        return open_split(self.run, config, self.classes, data, split, data_root, images, self.multi_label)

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities of logits, both B classes."""

    @abstractmethod
    def result(self, name: str, shares: Tensor, top: int | None, threshold: float | None) -> Classification:
        """The result of an image by the probability of every class."""

    @abstractmethod
    def right(self, probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each image is predicted right."""

    @abstractmethod
    def describe_outputs(self) -> dict[str, Any]:
        """What a program must do with logits."""

    @abstractmethod
    def measure(
        self, probabilities: NDArray[np.float32], labels: NDArray[Any], speed: float, split: str, source: Any
    ) -> M:
        """Metrics from probabilities and labels of images; `source` reads and names them by position."""

    def infer(  # type: ignore[override]
        self,
        images: Sequence[Image.Image],
        names: Sequence[str],
        top: PositiveInt | None = None,
        threshold: Share | None = None,
        tta: Tta = "none",
    ) -> list[Classification]:
        """The most probable classes of each image; of several labels an image, those above their thresholds.

        Args:
            top: classes shown for each image; default: 5, or all above their thresholds.
            threshold: probability from which on a class is shown, for runs of several labels an image;
                default: that of each class which gave the highest F1 on validation images.
            tta: test-time augmentation: average probabilities of the image and its mirror image (flip), and
                of both in center crops of 90 and 80 % of the sides (crops).
        """
        if top is not None:
            check_value("top", top, PositiveInt)
        probabilities = self.infer_all(images, tta)
        return [self.result(*pair, top, threshold) for pair in zip(names, probabilities, strict=True)]

    @torch.inference_mode()
    def infer_all(self, images: Sequence[Image.Image], tta: Tta = "none") -> Tensor:
        """The probability of every class, B classes, of images from `open_image`."""
        inputs = torch.stack([self.transform(image) for image in images]).to(self.device)
        return self.probabilities(inputs, tta).cpu()

    def probabilities(self, inputs: Tensor, tta: Tta = "none") -> Tensor:
        """The probability of every class, B classes, of the model's input, B C H W; with test-time
        augmentation their mean over the views."""
        views = [self.activation(self.model(view).float()) for view in test_time_views(inputs, tta)]
        return views[0] if len(views) == 1 else torch.stack(views).mean(0)

    def evaluate(  # type: ignore[override]
        self,
        data: str | None = None,
        split: Literal["auto", "train", "val", "test", "all"] = "auto",
        data_root: str | None = None,
        images: str | None = None,
        batch_size: PositiveInt = 64,
        workers: Workers = 2,
        tta: Tta = "none",
    ) -> M:
        """Metrics on a split of DATA, the run's own by default.

        Args:
            data: DATA as in training. Of the run's own, or a copy or part of it, its saved splits are used.
            split: train, val, test or all; "auto" takes test, else val, else all. Metrics say how many of the
                images were trained on.
            data_root: folder of a named timm dataset, if not the run's.
            images: folder of the images that a table names, if they are neither next to it nor in the run's.
            batch_size: images in one forward pass.
            workers: data-loading processes; 0 loads in this one.
            tta: test-time augmentation, as `predict` has it: flip for 2 views of an image, crops for 6.

        Raises:
            FileNotFoundError, ValueError: no such data or split, or classes that the run does not know.
        """
        name, opened = self.choose_split(data, split, data_root, images)
        return self.evaluate_on(opened, name, batch_size, workers, tta)

    @torch.inference_mode()
    def evaluate_on(
        self, images: Split, name: str, batch_size: int = 64, workers: int = 2, tta: Tta = "none"
    ) -> M:
        """Metrics on images that are open already. Those that cannot be read are left out, up to a limit.

        Raises:
            TooManyUnreadable: of more files than `max_skipped` of the run allows.
        """
        limit, device = self.max_skipped, self.device
        batches = ReadableBatches(name, images, self.transform, batch_size, workers, limit, device)
        started = time.perf_counter()
        pairs = [
            (self.probabilities(inputs.to(device, non_blocking=True), tta).cpu(), targets)
            for inputs, targets in progress(batches, "evaluating")
        ]
        probabilities, labels = (torch.cat(part).numpy() for part in zip(*pairs, strict=True))
        speed = len(labels) / (time.perf_counter() - started)
        metrics = self.measure(probabilities, labels, speed, name, batches.split)
        return replace(metrics, skipped=batches.skipped, trained_on=images.trained_on, tta=tta)

    def export(self, **options: Any) -> Any:
        from atconv.tasks.classification.export import ClassificationExporter
        from atconv.tasks.common.export import export

        return export(ClassificationExporter(self), **options)
