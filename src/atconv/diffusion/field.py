"""The velocity field of a model, with classifier-free guidance (arXiv 2207.12598) in an interval of time
(arXiv 2404.07724)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atconv.diffusion.interpolants import Interpolant, Prediction

__all__ = ["Field", "check_guidance"]


class Field:
    """The velocity that a model gives at (t, x), guided or not. Counts its evaluations.

    Args:
        model: (x B C H W, t B, labels B) → prediction, such as a SiT.
        interpolant: what the model was trained on.
        prediction: what the model predicts.
        labels: B class indices, or None for a model without classes.
        guidance_scale: velocity = unconditional + scale·(conditional − unconditional); 1 is no guidance.
        guidance_interval: times between which guidance acts.
        guidance_channels: guide only the first so many channels; the rest stays conditional. Default: all.

    Raises:
        ValueError: guidance on a model without a null label, or a scale, interval or channels that there are
            not.
    """

    def __init__(
        self,
        model: nn.Module,
        interpolant: Interpolant,
        prediction: Prediction = "velocity",
        labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
    ) -> None:
        check_guidance(guidance_scale, guidance_interval, guidance_channels)
        self.model, self.interpolant, self.prediction, self.labels = model, interpolant, prediction, labels
        self.guidance_scale, self.guidance_channels = guidance_scale, guidance_channels
        self.guidance_interval = tuple(guidance_interval)
        self.evaluations = 0
        # diffusers' dtype: the one that layers compute in, where it is not that of their stored weights.
        parameter = next(model.parameters(), None)
        self._dtype = getattr(model, "dtype", None if parameter is None else parameter.dtype)
        self.times = interpolant.interval(prediction, sampling=True)
        self._null_label = getattr(model, "null_label", None)
        if guidance_scale != 1 and (labels is None or self._null_label is None):
            raise ValueError(
                "guidance needs a model with classes that was trained with label dropout; this one has no "
                "null label: set guidance to 1"
            )

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Velocity at one time for all samples: t scalar, x B C H W. Conditional and unconditional are one
        batch."""
        self.evaluations += 1
        if self.times != (0.0, 1.0):  # adaptive solvers look beyond the end, here into a singularity
            t = t.clamp(*self.times)
        if self.labels is None or self._null_label is None or not self._guides(t):
            predicted = self._predict(x, t, self.labels)
        else:
            pairs = torch.cat([self.labels, torch.full_like(self.labels, self._null_label)])
            predicted = self._guide(*self._predict(torch.cat([x, x]), t, pairs).chunk(2))
        return self.interpolant.to_velocity(predicted, self.prediction, x, t)

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The model works in its own dtype, the solver in that of its state."""
        return self.model(x.to(self._dtype or x.dtype), t.expand(len(x)), labels).to(x.dtype)

    def _guides(self, t: Tensor) -> bool:
        start, end = self.guidance_interval
        return self.guidance_scale != 1 and ((start, end) == (0.0, 1.0) or start <= float(t) <= end)

    def _guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        guided = torch.lerp(unconditional, conditional, self.guidance_scale)
        channels = self.guidance_channels
        if channels is None:
            return guided
        return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)


def check_guidance(scale: float, interval: tuple[float, float], channels: int | None) -> None:
    """Raise ValueError for a scale, an interval of time or a number of channels that cannot be guided."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"guidance must be finite and not negative, got {scale}; 1 is no guidance")
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance_interval must be 0 ≤ from < to ≤ 1, got {interval}")
    if channels is not None and channels < 1:
        raise ValueError(f"guidance_channels must be at least 1, got {channels}")
