"""ATConv on maps of one, two and three axes, B C *S."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from atconv import functional
from atconv.modules.base import ATConv
from atconv.ops.causal import memory_decay, sum_dtype
from atconv.ops.checking import check_causal
from atconv.ops.dynamic_depthwise_conv import share_kernels

__all__ = ["ATConv1d", "ATConv2d", "ATConv3d", "CausalState"]


class _ATConvMap(ATConv):
    def forward(self, x: Tensor) -> Tensor:
        kernel, alpha = self.raw_kernels(x)
        y = self.proj(self._convolve(self.value_proj(x), kernel, alpha))
        return y if self.bias is None else y + self.bias.view([-1] + [1] * (x.ndim - 2))


class ATConv2d(_ATConvMap):
    """Attentive convolution on images: a token mixer, and a drop-in for convolutions. B C H W → B C' H' W'.

    >>> ATConv2d(64)(torch.randn(2, 64, 14, 14)).shape
    torch.Size([2, 64, 14, 14])
    >>> ATConv2d(64, 128, stride=2)(torch.randn(2, 64, 14, 14)).shape
    torch.Size([2, 128, 7, 7])

    Args:
        in_channels: channels C.
        out_channels: of the output; default: C.
        kernel_size: odd K, for all axes or one each.
        stride, dilation: of the convolution, for all axes or one each.
        padding_mode: what lies beyond the border: zeros, reflect, replicate or circular.
        act_layer: activation between context projection and kernel generator.
        bias: biases in all four projections; without projections, one of the output.
        routing: False learns one static kernel a channel in place of content-made kernels.
        inhibition: False drops lateral inhibition (λ = 0).
        projections: False leaves out both 1×1 projections: the operator in place of a depthwise convolution.
        context_grid: make the kernels from the means of a K×K grid of cells, not of K² raster stretches; the
            released weights take the latter.
        context_bins: number of bins n; default: as many as a kernel has weights. With `context_grid`, the
            square (1-D: the first power, 3-D: the cube) of a number of cells along each axis.
        kernel_groups: number of kernels a sample, each shared by C / kernel_groups neighboring channels;
            default: C.
        kernel_bias: a learned kernel for each channel, to which the content-made one is added, in place of
            the generator's bias, which all channels share.
        device, dtype: of the parameters.

    Raises:
        ValueError: an option is out of range or does not fit another; in forward, a map of another shape.
        TypeError: an option is of another kind or not known; in forward, an integer map.
    """

    axes = 2


class ATConv3d(_ATConvMap):
    """Attentive convolution on volumes and videos: B C D H W → B C' D' H' W'.

    >>> ATConv3d(16, kernel_size=(1, 3, 3))(torch.randn(2, 16, 4, 14, 14)).shape
    torch.Size([2, 16, 4, 14, 14])

    Args and Raises: as `ATConv2d`.
    """

    axes = 3


class CausalState(NamedTuple):
    """What a causal `ATConv1d` knows of a sequence so far."""

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


class ATConv1d(_ATConvMap):
    """Attentive convolution on sequences: B C N → B C' N'.

    >>> ATConv1d(64, kernel_size=7)(torch.randn(2, 64, 100)).shape
    torch.Size([2, 64, 100])

    With `causal`, an output depends on its own position and those before it: the kernel reaches back only and
    is made from running means over the past (`functional.causal_context`), a new one every `chunk` positions.
    `step` takes a sequence one position at a time, with the same result.

    >>> mixer = ATConv1d(64, causal=True).eval()
    >>> state = mixer.initial_state(batch=2)
    >>> y, state = mixer.step(torch.randn(2, 64), state)

    Args: as `ATConv2d`, and
        causal: outputs depend on the past alone. Takes stride 1, zero padding and no `context_grid`.
        chunk: positions that share a kernel, of a causal mixer. Making a kernel costs n·C² multiply-adds, as
            much as n positions of a projection.

    Raises: as `ATConv2d`.
    """

    axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] = 3,
        *,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        routing: bool = True,
        inhibition: bool = True,
        projections: bool = True,
        context_grid: bool = False,
        context_bins: int | None = None,
        kernel_groups: int | None = None,
        kernel_bias: bool = False,
        causal: bool = False,
        chunk: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **others: NoReturn,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding_mode=padding_mode,
            act_layer=act_layer,
            bias=bias,
            routing=routing,
            inhibition=inhibition,
            projections=projections,
            context_grid=context_grid,
            context_bins=context_bins,
            kernel_groups=kernel_groups,
            kernel_bias=kernel_bias,
            device=device,
            dtype=dtype,
            **others,
        )
        if chunk < 1 or (chunk > 1 and not causal):
            raise ValueError(f"ATConv1d: chunk must be 1 or more, and 1 unless causal, got {chunk}")
        if causal:
            check_causal(self.stride, self.padding_mode, self.context_grid)
        self.causal, self.chunk = causal, chunk

    def raw_kernels(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As of other mixers; a causal one gives its kernels after inhibition: B G M K for its M chunks, or
        1 G 1 K without routing."""
        if not self.causal:
            return super().raw_kernels(x)
        self.check(x)
        if not self.routing:
            return self._inhibit(self.static_kernel[None]).unsqueeze(2), None
        context = functional.causal_context(x, self.context_bins, self.chunk).permute(0, 3, 1, 2)  # B M C n
        kernel = self._inhibit(self._context_to_kernel(context.flatten(0, 1)))
        return kernel.unflatten(0, context.shape[:2]).transpose(1, 2), None

    def macs(self, *size: int) -> int:
        count, made = super().macs(*size), -(-size[0] // self.chunk)
        if not (self.causal and self.routing):
            return count
        weights = self.context_bins * self.kernel_groups * (self.in_channels + self._sizes[0])
        return count + (made - 1) * weights

    def initial_state(self, batch: int) -> CausalState:
        """The state before a sequence.

        Raises:
            ValueError: the mixer is not causal.
        """
        self._check_causal()
        like, reach = next(self.parameters()), (self._sizes[0] - 1) * self.dilation[0]
        return CausalState(
            0,
            like.new_zeros(batch, self.in_channels, self.context_bins, dtype=sum_dtype(like)),
            like.new_zeros(self.context_bins, dtype=sum_dtype(like)),
            like.new_zeros(batch, self.in_channels, reach),
            like.new_zeros(batch, self.kernel_groups, self._sizes[0]),
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
            kernel = self._inhibit(self.static_kernel[None])
        elif state.position % self.chunk == 0:
            kernel = self._inhibit(self._context_to_kernel((sums / weights).to(x.dtype)))
        values = torch.cat([state.values, self.value_proj(x[..., None])], dim=2)
        taps = values[..., :: self.dilation[0]] * share_kernels(kernel, x)
        y = self.proj(taps.sum(-1, keepdim=True))[..., 0]
        y = y if self.bias is None else y + self.bias
        return y, CausalState(state.position + 1, sums, weights, values[..., 1:], kernel)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", causal=True, chunk={self.chunk}" if self.causal else "")

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError("ATConv1d: only a causal mixer has a state, this one is not: causal=True")

    def _check_step(self, x: Tensor, state: CausalState) -> None:
        self._check_causal()
        batch, channels, dtype = len(state.sums), self.in_channels, state.values.dtype
        sizes = self.context_bins, (self._sizes[0] - 1) * self.dilation[0], self.kernel_groups, self._sizes[0]
        shapes = state.sums.shape[2:] + state.values.shape[2:] + state.kernel.shape[1:]
        if tuple(shapes) != sizes or state.sums.shape[1] != channels:
            raise ValueError("ATConv1d: the state is of another mixer: begin with this one's initial_state")
        if x.shape != (batch, channels):
            raise ValueError(
                f"ATConv1d: step takes a position of each sequence, {batch} × {channels} for this state, "
                f"got {tuple(x.shape)}"
            )
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"ATConv1d: step takes {dtype} as its state, got {x.dtype}")

    def _inhibit(self, kernel: Tensor) -> Tensor:
        return kernel if self.alpha is None else functional.lateral_inhibition(kernel, self.alpha)

    def _convolve(self, value: Tensor, kernel: Tensor, alpha: Tensor | None) -> Tensor:
        if not self.causal:
            return super()._convolve(value, kernel, alpha)
        return functional.causal_depthwise_conv(value, kernel, self.chunk, self.dilation[0])
