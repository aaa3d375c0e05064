"""What training minimizes: cross-entropy, with mixing, class weights and a teacher."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from timm.data import Mixup, resolve_data_config
from torch import Tensor, nn

from atconv.data.imbalance import Occurrences, class_weights
from atconv.engine.progress import heartbeat
from atconv.engine.rng import seeded
from atconv.engine.run import Run
from atconv.io import count_of, first_few
from atconv.plots import Panel
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.model import open_named_model
from atconv.tasks.classification.predictor import ClassificationPredictor
from atconv.tasks.registry import open_run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from atconv.data.splits import Split

__all__ = [
    "Objective",
    "Teacher",
    "distillation_loss",
    "dkd_loss",
    "match_teacher",
    "open_teacher",
    "predict_logits",
]

logger = logging.getLogger(__name__)


class Teacher(nn.Module):
    """A frozen classifier that reads the student's input: renormalized, and resized where it must be.

    Args:
        model: the classifier.
        mean, std: normalization of the student's input.
        order: the model's output for each class of the student; default: the same order.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        data = resolve_data_config({}, model=model)
        fixed = vars(model)["pretrained_cfg"].get("fixed_input_size")
        self.size = tuple(data["input_size"][1:]) if fixed else None
        own_mean, own_std = (torch.tensor(data[k]).view(-1, 1, 1) for k in ("mean", "std"))
        mean_, std_ = (torch.tensor(list(v)).view(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", std_ / own_std)
        self.register_buffer("shift", (mean_ - own_mean) / own_std)
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever it is a part of."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.shift
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        logits = self.model(x)
        return logits if self.order is None else logits[:, self.order]


class Objective(nn.Module):
    """What a run minimizes and which metric picks its best epoch, for images of one class each.

    Loss of a batch: mixing, cross-entropy, distillation. (model, images, labels, seed) → scalars.

    Args:
        config: loss, mixing and distillation options.
        classes: names of the classes.
        labels: class index of every training image, for class weights; None where not known.
        teacher: from `open_teacher`.

    Raises:
        ValueError: there is a teacher of several labels an image: distillation compares classes that exclude
            each other.
    """

    multi_label = False
    weights: Tensor | None

    def __init__(
        self,
        config: ClassificationConfig,
        classes: Sequence[str],
        labels: ArrayLike | None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if teacher is not None and self.multi_label:
            raise ValueError(
                f"{config.data} has several labels an image, and distillation is for one class each: leave "
                "--distill and --teacher out"
            )
        self.config, self.classes = config, len(classes)
        self.smoothing = 0.0 if config.mixes else config.label_smoothing  # Mixup smooths itself
        self.mixup = _make_mixup(config, len(classes), self.multi_label) if config.mixes else None
        weights = None
        if config.class_weights != "none":
            if labels is None:
                raise ValueError("class_weights needs labels of training images, to count classes")
            weights = self.class_weights(np.asarray(labels), classes)
        self.register_buffer("weights", None if weights is None else torch.tensor(weights).float())
        self.teacher = None if teacher is None else match_teacher(config, teacher, classes)

    @property
    def monitor(self) -> str:
        """The metric of `validate` that picks the best epoch."""
        return "val_balanced_accuracy" if self.config.evens_out else "val_top1"

    def class_weights(self, labels: NDArray[Any], classes: Sequence[str]) -> Any:
        """What each class weighs in the loss."""
        occurrences = Occurrences.of_labels(classes, labels)
        return class_weights(occurrences, self.config.class_weights, self.config.class_weight_beta)

    def forward(
        self, model: nn.Module, images: Tensor, labels: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = labels
        if self.mixup is not None:
            with seeded(seed):
                images, targets = self.mixup(images, labels)
        logits = model(images)
        base = F.cross_entropy(logits, targets, weight=self.weights, label_smoothing=self.smoothing)
        hard = targets.argmax(1) if targets.ndim == 2 else targets
        metrics = {"top1": 100 * (logits.argmax(1) == hard).float().mean()}
        if self.teacher is None:
            return base, metrics
        teacher_logits = self.teacher(images)
        if self.config.distill == "dkd":
            temperature = self.config.distill_temperature or 4.0
            extra = dkd_loss(
                logits, teacher_logits, hard, self.config.dkd_alpha, self.config.dkd_beta, temperature
            )
            return base + extra, metrics
        extra = distillation_loss(
            logits, teacher_logits, self.config.distill, self.config.distill_temperature or 1.0
        )
        share = self.config.distill_weight
        return (1 - share) * base + share * extra, metrics

    @torch.inference_mode()
    def validate(
        self, model: nn.Module, batches: Iterable[Any], accelerator: Accelerator
    ) -> dict[str, float]:
        """val_loss, val_top1, val_top5 (of more than five classes) and val_balanced_accuracy, over all
        processes."""
        device = accelerator.device
        sums = torch.zeros(2, device=device)  # loss, top-5 hits
        right, images_of = torch.zeros(2, self.classes, device=device)  # by class
        for logits, labels in predict_logits(model, batches, accelerator):
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss, hits.sum()])
            right.index_add_(0, labels, hits[:, 0].float())
            images_of.index_add_(0, labels, torch.ones_like(hits[:, 0], dtype=torch.float32))
        reduced = accelerator.reduce(torch.cat([sums, right, images_of]), reduction="sum").double()
        (loss_sum, top5), (right, images_of) = reduced[:2].tolist(), reduced[2:].view(2, -1)
        count = int(images_of.sum())
        if count == 0:
            raise ValueError("the validation split has no images")
        metrics = {"val_loss": loss_sum / count, "val_top1": 100 * float(right.sum()) / count}
        if self.classes > 5:
            metrics["val_top5"] = 100 * top5 / count
        recalls = right[images_of > 0] / images_of[images_of > 0]
        return metrics | {"val_balanced_accuracy": 100 * float(recalls.mean())}

    def panels(self) -> list[Panel]:
        """The learning curves of loss and score."""
        accuracy = {"train, augmented": "train_top1", "validation": "val_top1"}
        if self.monitor == "val_balanced_accuracy":
            accuracy["validation, balanced"] = "val_balanced_accuracy"
        loss = {"train, augmented": "train_loss", "validation": "val_loss"}
        return [Panel("Loss", "cross-entropy", loss), Panel("Accuracy", "top-1 (%)", accuracy)]

    def model_config(self, run: Run) -> dict[str, Any]:
        """What config.json says of the outputs, besides the names of the classes."""
        return {}

    def finish(self, predictor: Any, val: Split) -> None:
        """After the last epoch, before the run is evaluated: choose what its predictions depend on."""


def _make_mixup(config: ClassificationConfig, classes: int, multi_label: bool) -> Mixup:
    """timm's Mixup and CutMix, as a configuration says. Of several labels it smooths each towards ½."""
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.mix_switch_prob,
        label_smoothing=config.label_smoothing,
        num_classes=classes,
        multi_label=multi_label,
    )


def predict_logits(model: nn.Module, batches: Iterable[Any], accelerator: Accelerator) -> Iterator[Any]:
    """Logits and labels of each batch, with the model in eval mode until the last one."""
    was_training = model.training
    model.eval()
    for images, labels in heartbeat(batches, "validating"):
        images, labels = (part.to(accelerator.device, non_blocking=True) for part in (images, labels))
        with accelerator.autocast():
            logits = model(images)
        yield logits.float(), labels
    model.train(was_training)


def distillation_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Distance of a student's logits (B classes) to a teacher's.

    "soft": T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over B (Hinton et al., arXiv 1503.02531).
    "hard": cross-entropy with the teacher's decision (DeiT, arXiv 2012.12877).
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    log_p = F.log_softmax(student / temperature, 1)
    log_q = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Decoupled knowledge distillation (arXiv 2203.08679): T²·(α·TCKD + β·NCKD), mean over B.

    TCKD compares target against all others together; NCKD compares the others among themselves.

    Args:
        student, teacher: logits, B classes.
        target: class indices, B.
    """
    log_p = F.log_softmax(student / temperature, 1)
    log_q = F.log_softmax(teacher / temperature, 1)
    is_target = F.one_hot(target, student.shape[1]).bool()

    def binary(log: Tensor) -> Tensor:
        others = log.masked_fill(is_target, -torch.inf).logsumexp(1)
        return torch.stack([log.gather(1, target[:, None])[:, 0], others], 1)

    def among_others(logits: Tensor) -> Tensor:
        rest = logits[~is_target].view(len(logits), -1)
        return F.log_softmax(rest / temperature, 1)

    target_part = F.kl_div(binary(log_p), binary(log_q), reduction="batchmean", log_target=True)
    other_part = F.kl_div(
        among_others(student), among_others(teacher), reduction="batchmean", log_target=True
    )
    return temperature**2 * (alpha * target_part + beta * other_part)


def open_teacher(config: ClassificationConfig) -> nn.Module | None:
    """The model that a configuration distills from, if any.

    Raises:
        ValueError: it cannot be built, or its channels are not the student's.
    """
    if config.distill == "none":
        return None
    name = str(config.teacher)
    model: Any
    if Path(name).is_dir():
        if config.teacher_weights is not None:
            raise ValueError(
                f"teacher_weights are for a teacher by timm's name, and {name} is a run, which has its own: "
                "leave them out"
            )
        predictor = ClassificationPredictor.open(open_run(name))
        if predictor.multi_label:
            raise ValueError(f"teacher {name!r} gives several labels an image: take one of one class each")
        model = predictor.model
    elif "/" in name and ":" not in name:
        raise ValueError(f"teacher {name!r} cannot be loaded: there is no such folder")
    else:
        try:
            model = open_named_model(name, config.teacher_weights)
        except ValueError as error:
            raise ValueError(f"teacher {name!r} cannot be loaded: {error}") from error
    channels = resolve_data_config({}, model=model)["input_size"][0]
    if channels != config.in_chans:
        raise ValueError(f"teacher {name!r} reads {channels} channels, the student {config.in_chans}")
    return model


def match_teacher(config: ClassificationConfig, model: Any, classes: Sequence[str]) -> Teacher:
    """A teacher whose classes are matched with the data's: by name, where it has names. It may know more.

    Raises:
        ValueError: it knows other classes.
    """
    name = str(config.teacher)
    known = model.pretrained_cfg.get("label_names")
    if not known and model.num_classes != len(classes):
        raise ValueError(
            f"teacher {name!r} knows {count_of(model.num_classes, 'class', 'classes')} without names, the "
            f"data has {len(classes)}: take a run as teacher, whose classes are found by name"
        )
    return Teacher(model, *config.normalization(), _match_classes(name, known, classes))


def _match_classes(teacher: str, known: Sequence[str] | None, classes: Sequence[str]) -> list[int] | None:
    """The teacher's output for each class, by name; None for a teacher that names no classes."""
    if not known:
        logger.warning(
            "teacher %r does not name its classes: its outputs are taken in the order of the data's, %s",
            teacher, first_few(classes),
        )  # fmt: skip
        return None
    if repeated := sorted(name for name, count in Counter(known).items() if count > 1):
        raise ValueError(f"teacher {teacher!r} has several classes of one name: {first_few(repeated)}")
    missing = sorted(set(classes) - set(known))
    if missing:
        extra = sorted(set(known) - set(classes))
        instead = f", it has {first_few(extra)} instead" if extra else ""
        raise ValueError(
            f"teacher {teacher!r} knows other classes than the data: {first_few(missing)} are "
            f"missing{instead}; name the folders alike, or take a teacher of these classes"
        )
    index = {name: i for i, name in enumerate(known)}
    return [index[name] for name in classes]
