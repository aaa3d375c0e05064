"""Causal mixers one position at a time, with a state in place of the past."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atconv import functional
from atconv.modules.base import ATConv
from atconv.ops.causal import memory_decay, sum_dtype
from atconv.ops.dynamic_depthwise_conv import share_kernels

__all__ = ["CausalState", "Stepping"]


class CausalState(NamedTuple):
    """What a causal mixer knows of a sequence so far."""

    position: int
    """of the next element"""
    sums: Tensor
    """running sums of the context's memories, B C n"""
    weights: Tensor
    """and of their weights, n"""
    values: Tensor
    """the values that the kernel still reaches, B C (K − 1)·dilation"""
    kernel: Tensor
    """the kernels of the current chunk, B G K"""


class Stepping(ATConv):
    """A mixer that takes a sequence one position at a time if it is causal."""

    def initial_state(self, batch: int) -> CausalState:
        """The state before a sequence.

        Raises:
            ValueError: the mixer is not causal.
        """
        self._check_causal()
        like, reach = next(self.parameters()), (self._kernel_sizes[0] - 1) * self.dilation[0]
        return CausalState(
            0,
            like.new_zeros(batch, self.in_channels, self.context_bins, dtype=sum_dtype(like)),
            like.new_zeros(self.context_bins, dtype=sum_dtype(like)),
            like.new_zeros(batch, self.in_channels, reach),
            like.new_zeros(batch, self.kernel_groups, self._kernel_sizes[0]),
        )

    def step(self, x: Tensor, state: CausalState) -> tuple[Tensor, CausalState]:
        """The next position: B C → B C', and the state after it.

        Raises:
            ValueError: the mixer is not causal, or `x` has another shape than B C, or the state is of another
                mixer or batch.
            TypeError: `x` has another dtype than the state.
        """
        self._check_step(x, state)
        decay = torch.tensor(memory_decay(self.context_bins), dtype=torch.float64).to(state.sums)
        sums, weights = decay * state.sums + x[..., None], decay * state.weights + 1
        kernel = state.kernel
        if not self.routing:
            kernel = functional.lateral_inhibition(self.static_kernel[None], self.alpha)
        elif state.position % self.chunk == 0:
            raw = self._context_to_kernel((sums / weights).to(x.dtype))
            kernel = functional.lateral_inhibition(raw, self.alpha)
        values = torch.cat([state.values, self._project_position(self.value_proj, x)[..., None]], dim=2)
        taps = values[..., :: self.dilation[0]] * share_kernels(kernel, x)
        y = self._project_position(self.proj, taps.sum(-1))
        y = y if self.bias is None else y + self.bias
        return y, CausalState(state.position + 1, sums, weights, values[..., 1:], kernel)

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__}: only a causal mixer has a state, this one is not: causal=True"
            )

    def _check_step(self, x: Tensor, state: CausalState) -> None:
        self._check_causal()
        name = type(self).__name__
        batch, channels, dtype = len(state.sums), self.in_channels, state.values.dtype
        sizes = (
            self.context_bins,
            (self._kernel_sizes[0] - 1) * self.dilation[0],
            self.kernel_groups,
            self._kernel_sizes[0],
        )
        shapes = state.sums.shape[2:] + state.values.shape[2:] + state.kernel.shape[1:]
        if tuple(shapes) != sizes or state.sums.shape[1] != channels:
            raise ValueError(f"{name}: the state is of another mixer: begin with this one's initial_state")
        if x.shape != (batch, channels):
            raise ValueError(
                f"{name}: step takes a position of each sequence, {batch} × {channels} for this state, "
                f"got {tuple(x.shape)}"
            )
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name}: step takes {dtype} as its state, got {x.dtype}")

    def _project_position(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A projection of B C."""
        y: Tensor = layer(x[..., None])
        return y[..., 0]
