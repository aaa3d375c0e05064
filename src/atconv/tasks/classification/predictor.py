"""A trained classifier: what it says of images, and how good it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from atconv.data.images import open_image
from atconv.data.splits import Split
from atconv.data.transforms import EvalTransform
from atconv.data.unreadable import list_skipped
from atconv.engine.options import PositiveInt, Share, Workers, check_value
from atconv.engine.predictor import ImageLike, ImagePredictor, Result
from atconv.engine.progress import progress
from atconv.engine.reading import check_weights, naming_damage, read_json
from atconv.engine.recipes import read_config
from atconv.engine.run import Run
from atconv.io import write_rows
from atconv.tasks.classification.augmentation import Tta, test_time_views
from atconv.tasks.classification.config import MULTI_LABEL, ClassificationConfig
from atconv.tasks.classification.data import ReadableBatches, open_split
from atconv.tasks.classification.metrics import ClassificationMetrics, ClassifierMetrics, compute_metrics
from atconv.tasks.common.model_file import read_classifier

__all__ = ["Classification", "ClassificationPredictor"]

_TOP = 5


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


class ClassificationPredictor(ImagePredictor[Classification, ClassificationMetrics]):
    """A trained classifier. `predictor(images, top=5)`; the model takes B C H W of `transform`'s results."""

    task = "classification"
    result_class: ClassVar[type[Classification]] = Classification
    metrics_class: ClassVar[type[ClassifierMetrics]] = ClassificationMetrics
    csv_columns = ("image", "rank", "class", "probability")
    multi_label: ClassVar[bool] = False
    """whether it gives an image several classes"""

    @classmethod
    def open(cls, run: Run) -> Self:
        """The best model of a classification run.

        Raises:
            ValueError: no epoch of it has finished, or its weights are damaged.
        """
        state = run.read_weights()
        content = read_json(run.model_config, {})
        for name, words in (("label_names", "classes"), ("architecture", "architecture")):
            if not content.get(name):
                raise ValueError(f"{run.path} is not a classification run: its config.json names no {words}")
        content = read_classifier(run.model_config)
        classes = content["label_names"]
        with naming_damage(run.model_config, f"its model_args make no {content['architecture']}"):
            model: Any = timm.create_model(f"local-dir:{run.path}")
        check_weights(model, {name: tensor.shape for name, tensor in state.items()}, run.model_config)
        model.load_state_dict(state)
        transform = EvalTransform(model.pretrained_cfg)
        config = read_config(run, ClassificationConfig, "classification") if run.config.is_file() else None
        if content.get("problem_type") != MULTI_LABEL:
            return cls(run, model, transform, classes, config)
        return cls._open_multi_label(content.get("thresholds"), run, model, transform, classes, config)

    @classmethod
    def _open_multi_label(cls, thresholds: list[float] | None, run: Run, *args: Any) -> Any:
        from atconv.tasks.classification.multi_label_predictor import MultiLabelPredictor

        predictor = MultiLabelPredictor(run, *args)
        predictor.thresholds = thresholds or [0.5] * len(predictor.classes)
        return predictor

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

    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities of logits, both B classes."""
        return logits.softmax(1)

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

    def result(self, name: str, shares: Tensor, top: int | None, threshold: float | None) -> Classification:
        """The result of an image by the probability of every class."""
        if threshold is not None:
            raise ValueError(
                f"threshold is for several labels an image, and {self.run.path} gives one class each"
            )
        values, best = shares.topk(min(top or _TOP, len(self.classes)))
        classes = [self.classes[i] for i in best.tolist()]
        return Classification(image=name, classes=classes, probabilities=values.tolist())

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
    ) -> ClassificationMetrics:
        """Metrics on a split of DATA, the run's own by default.

        Args:
            data: DATA as in training. Of the run's own, or a copy or part of it, its saved splits are used.
            split: train, val, test or all; "auto" takes test, else val, else all. Metrics say how many of the
                images were trained on.
            data_root: folder of a named timm dataset, if not the run's.
            images: folder of the images that a table names, if they are neither next to it nor in the run's.
            batch_size: images in one forward pass.
            workers: data-loading processes.
            tta: test-time augmentation, as `predict` has it: flip for 2 views of an image, crops for 6.

        Raises:
            FileNotFoundError, ValueError: no such data or split, or classes that the run does not know.
        """
        name, opened = self.choose_split(data, split, data_root, images)
        return self.evaluate_on(opened, name, batch_size, workers, tta)

    @torch.inference_mode()
    def evaluate_on(
        self, images: Split, name: str, batch_size: int = 64, workers: int = 2, tta: Tta = "none"
    ) -> ClassificationMetrics:
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

    right_name: ClassVar[str] = "top-1"
    """what the share of `right` images is called"""

    def right(self, probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each image is predicted right."""
        return probabilities.argmax(1) == labels

    def describe_outputs(self) -> dict[str, Any]:
        """What a program must do with logits."""
        return {"activation": "softmax"}

    def measure(
        self, probabilities: NDArray[np.float32], labels: NDArray[Any], speed: float, split: str, source: Any
    ) -> ClassificationMetrics:
        """Metrics from probabilities and labels of images; `source` reads and names them by position."""
        return compute_metrics(probabilities, labels, self.classes, speed, split, source)

    def save_results(self, metrics: ClassificationMetrics, folder: Path) -> None:
        """Write predictions.csv, confusion.png and mistakes.png; skipped.csv of files that are left out."""
        from atconv.tasks.classification import plots

        list_skipped(metrics.skipped, folder, self.run.path)
        classes, predicted = self.classes, metrics.probabilities.argmax(1)
        rows = [
            {
                "image": metrics.source.name(i),
                "label": classes[label],
                "predicted": classes[predicted[i]],
                "probability": f"{metrics.probabilities[i, predicted[i]]:.4f}",
            }
            for i, label in enumerate(metrics.labels)
        ]
        write_rows(folder / "predictions.csv", rows)
        plots.plot_confusion_matrix(metrics, folder / "confusion.png")
        worst = worst_mistakes(metrics.probabilities, metrics.labels).tolist()
        plots.plot_mistakes(metrics, worst, self.transform.prepare.mode, folder / "mistakes.png")

    def export(self, **options: Any) -> Any:
        from atconv.tasks.classification.export import ClassificationExporter
        from atconv.tasks.common.export import export

        return export(ClassificationExporter(self), **options)


def worst_mistakes(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int = 20
) -> NDArray[np.int64]:
    """Positions of the wrong predictions made with the greatest confidence, most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:count]
