"""What a run of several labels an image minimizes: binary cross-entropy of each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from atconv.data.splits import Split
from atconv.engine.reading import read_json
from atconv.engine.rng import seeded
from atconv.engine.run import Run
from atconv.plots import Panel
from atconv.tasks.classification.config import MULTI_LABEL
from atconv.tasks.classification.multi_label_metrics import mean_average_precision, micro_f1
from atconv.tasks.classification.objective import Objective, predict_logits

__all__ = ["MultiLabelObjective"]


class MultiLabelObjective(Objective):
    """Mean binary cross-entropy over images and classes. Labels are B classes of 0 and 1; smoothing by ε
    makes them (1 − ε)·y + ε/2. Class weights multiply the loss of an image's own labels by how many times as
    many images are not of the class. The best epoch has the highest mean average precision.

    Args: as for `Objective`; `labels` are images × classes.
    """

    multi_label, monitor = True, "val_map"

    def class_weights(self, labels: NDArray[Any], classes: Sequence[str]) -> Any:
        """What an image of each class weighs, relative to one that is not of it."""
        ratios = []
        for own in labels.T:
            no, yes = super().class_weights(own, ("no", "yes"))
            ratios.append(yes / no)
        return ratios

    def forward(
        self, model: nn.Module, images: Tensor, labels: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.mixup is None:
            targets = labels * (1 - self.smoothing) + 0.5 * self.smoothing
        else:
            with seeded(seed):
                images, targets = self.mixup(images, labels)
        logits = model(images).float()
        loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights)
        return loss, {"f1": 100 * micro_f1(logits > 0, targets > 0.5)}

    @torch.inference_mode()
    def validate(
        self, model: nn.Module, batches: Iterable[Any], accelerator: Accelerator
    ) -> dict[str, float]:
        """val_loss, val_f1 (micro, at probability ½) and val_map, over all processes."""
        parts = [(a.cpu(), b.cpu()) for a, b in predict_logits(model, batches, accelerator)]
        gathered = gather_object(parts)
        logits, labels = (torch.cat([part[i] for part in gathered]) for i in (0, 1))
        return {
            "val_loss": float(F.binary_cross_entropy_with_logits(logits, labels)),
            "val_f1": 100 * float(micro_f1(logits > 0, labels > 0)),
            "val_map": 100 * mean_average_precision(logits.numpy(), labels.numpy()),
        }

    def panels(self) -> list[Panel]:
        loss = {"train, augmented": "train_loss", "validation": "val_loss"}
        f1 = {"train, augmented": "train_f1", "validation": "val_f1"}
        return [
            Panel("Loss", "binary cross-entropy", loss),
            Panel("F1 over all labels", "at probability ½ (%)", f1),
            Panel("Mean average precision", "mAP (%)", {"validation": "val_map"}),
        ]

    def model_config(self, run: Run) -> dict[str, Any]:
        """What transformers needs to know of the outputs, and the thresholds that the run has so far."""
        try:
            thresholds = read_json(run.model_config, {"thresholds": list[float] | None}).get("thresholds")
        except (ValueError, FileNotFoundError):  # it is not there yet, or is damaged
            thresholds = None
        known = thresholds is not None and len(thresholds) == self.classes
        return {"problem_type": MULTI_LABEL, "thresholds": thresholds if known else [0.5] * self.classes}

    def finish(self, predictor: Any, val: Split) -> None:
        predictor.choose_thresholds(val, self.config.eval_batch_size, self.config.workers)
