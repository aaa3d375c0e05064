"""Class weights for torchvision's detectors, which compute their losses inside and take none."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import sigmoid_focal_loss

__all__ = ["weigh_classes"]


def weigh_classes(model: FasterRCNN | RetinaNet, weights: Tensor) -> None:
    """Let a detector's classification loss weigh each region by its true class, in place.

    Background weighs 1. Losses of boxes and masks, predictions and `state_dict()` stay as they are.

    Args:
        model: from `detector`; Mask R-CNN is a Faster R-CNN.
        weights: of the classes without background, N.
    """
    one_stage = isinstance(model, RetinaNet)
    # Layers and settings stay: only the loss is another.
    head: Any = model.head.classification_head if one_stage else model.roi_heads
    head.__class__ = _WeightedFocalHead if one_stage else _WeightedRoIHeads
    head.register_buffer("class_weights", torch.cat([weights.new_ones(1), weights]), persistent=False)


class _WeightedRoIHeads(RoIHeads):
    """Cross-entropy of all sampled regions, each times the weight of its class."""

    class_weights: Tensor

    def select_training_samples(self, *arguments: Any) -> Any:
        samples = super().select_training_samples(*arguments)
        self._labels = torch.cat(samples[2])
        return samples

    def forward(self, *arguments: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            return super().forward(*arguments)
        outputs: list[tuple[Tensor, Tensor]] = []
        hook = self.box_predictor.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        try:
            results, losses = super().forward(*arguments)
        finally:
            hook.remove()
        entropy = F.cross_entropy(outputs[0][0], self._labels, reduction="none")
        losses["loss_classifier"] = (entropy * self.class_weights[self._labels]).mean()
        return results, losses


class _WeightedFocalHead(RetinaNetClassificationHead):
    """Focal loss of all anchors, each times the weight of its class."""

    class_weights: Tensor

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        losses = []
        for target, logits, matched in zip(targets, head_outputs["cls_logits"], matched_idxs, strict=True):
            foreground, counts = matched >= 0, matched != self.BETWEEN_THRESHOLDS
            labels = torch.zeros_like(matched)
            labels[foreground] = target["labels"][matched[foreground]]
            wanted = F.one_hot(labels, logits.shape[1]).to(logits)
            wanted[:, 0] = 0  # background has no output of its own
            focal = sigmoid_focal_loss(logits, wanted).sum(1) * self.class_weights[labels]
            losses.append(focal[counts].sum() / foreground.sum().clamp(min=1))
        return torch.stack(losses).mean()
