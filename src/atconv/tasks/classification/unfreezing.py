"""Fine-tuning in stages: the head first, then the backbone, at once or one stage after the other."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from atconv.models.attnet import AttNet

__all__ = ["Unfreezing", "head_of"]


def head_of(model: nn.Module) -> nn.Module:
    """The part of a timm classifier that is trained where its backbone is frozen."""
    timm_model: Any = model
    head: nn.Module = model.head if isinstance(model, AttNet) else timm_model.get_classifier()
    return head


class Unfreezing:
    """Which parameters train is a function of the epoch: a resumed run trains those it would have trained.

    Args:
        model: a timm classifier.
        head_epochs: first epochs, in which the head trains alone.
        unfreeze_epochs: then another stage, from the last to the first, every so many epochs; None: all
            at once.

    Raises:
        ValueError: the model has no stages to unfreeze.
    """

    def __init__(self, model: nn.Module, head_epochs: int, unfreeze_epochs: int | None = None) -> None:
        self.head_epochs, self.unfreeze_epochs = head_epochs, unfreeze_epochs
        timm_model: Any = model
        try:
            stage_of: dict[str, int] = group_parameters(
                model, timm_model.group_matcher(coarse=True), reverse=True
            )
        except AttributeError as error:
            raise ValueError(
                f"a {type(model).__name__} has no stages to unfreeze: leave head_epochs out"
            ) from error
        head = {id(parameter) for parameter in head_of(model).parameters()}
        backbone = [(name, p) for name, p in model.named_parameters() if id(p) not in head]
        numbers = sorted({stage_of[name] for name, _ in backbone}, reverse=True)
        self.stages = [[p for name, p in backbone if stage_of[name] == number] for number in numbers]
        """parameters of the backbone, the last stage first"""

    def apply(self, epoch: int) -> None:
        """Let train what trains in an epoch, counted from 0."""
        trained = self._trained_stages(epoch)
        for i, stage in enumerate(self.stages):
            for parameter in stage:
                parameter.requires_grad_(i < trained)

    def describe(self, epochs: int) -> str:
        """What trains when in a run of so many epochs, for people."""
        text = f"the head trains alone up to epoch {self.head_epochs}"
        if self.unfreeze_epochs is None:
            return f"{text}, then the whole model"
        whole = self.head_epochs + (len(self.stages) - 1) * self.unfreeze_epochs
        each = "each epoch" if self.unfreeze_epochs == 1 else f"every {self.unfreeze_epochs} epochs"
        text += f", then a stage more {each}, "
        if whole < epochs:
            return f"{text}and the whole model from epoch {whole + 1} on"
        left = len(self.stages) - self._trained_stages(epochs - 1)
        return f"{text}so that {left} of {len(self.stages)} stages never train: that takes {whole + 1} epochs"

    def _trained_stages(self, epoch: int) -> int:
        if epoch < self.head_epochs:
            return 0
        if self.unfreeze_epochs is None:
            return len(self.stages)
        return min(1 + (epoch - self.head_epochs) // self.unfreeze_epochs, len(self.stages))
