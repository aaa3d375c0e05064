"""The layers of an ATConv mixer and the computation that all modules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.fx
from torch import Tensor, nn

from atconv import functional
from atconv.ops.causal import chunks_of
from atconv.ops.checking import PADDING_MODES, check_causal, check_map, per_axis, whole_numbers
from atconv.ops.plain import is_plain
from atconv.ops.static_conv import PointwiseConv2d

__all__ = ["ATConv", "inhibition_strength"]


class ATConv(nn.Module):
    """The layers of one ATConv mixer and the computation that all modules share."""

    __constants__ = ("causal", "routing")
    axes: int
    """axes of the map"""

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | None = None,
        *,
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
        super().__init__()
        if others:
            raise _unknown_option(type(self).__name__, next(iter(others)))
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.kernel_groups = in_channels if kernel_groups is None else kernel_groups
        self.routing, self.inhibition, self.context_grid = routing, inhibition, context_grid
        self.padding_mode, self.causal, self.chunk = padding_mode, causal, chunk
        self._check_options(projections)
        self._set_sizes(kernel_size, stride, dilation, context_bins)
        if causal:
            check_causal(self.stride, padding_mode, context_grid)
        self._check_padding(padding)
        weights = math.prod(self._kernel_sizes)
        groups = self.kernel_groups
        self.context_proj: nn.Linear | None = None
        self.kernel_gen: nn.Linear | None = None
        self.kernel_bias: nn.Parameter | None = None
        if routing:
            self.context_proj = nn.Linear(in_channels, groups, bias=bias, **dd)
            self.act = act_layer()
            self.kernel_gen = nn.Linear(self.context_bins, weights, bias=bias and not kernel_bias, **dd)
            if kernel_bias:
                self.kernel_bias = nn.Parameter(torch.zeros(groups, weights, **dd))
        else:
            self.static_kernel = nn.Parameter(torch.empty(groups, *self._kernel_sizes, **dd))
            # The bound nn.Conv2d takes for a depthwise kernel.
            bound = weights**-0.5
            nn.init.uniform_(self.static_kernel, -bound, bound)
        self.alpha: nn.Parameter | None = nn.Parameter(torch.zeros(groups, **dd)) if inhibition else None
        self.bias: nn.Parameter | None = None
        if bias and not projections:
            self.bias = nn.Parameter(torch.zeros(in_channels, **dd))
        identity = nn.Identity()
        self.value_proj = self._projection(in_channels, in_channels, bias, **dd) if projections else identity
        self.proj = self._projection(in_channels, self.out_channels, bias, **dd) if projections else identity

    def _check_options(self, projections: bool) -> None:
        name, channels = type(self).__name__, self.in_channels
        for option in ("in_channels", "out_channels", "kernel_groups", "chunk"):
            whole_numbers(getattr(self, option), 1, f"{name}: {option}")
        if min(channels, self.out_channels) < 1:
            raise ValueError(
                f"{name}: in_channels and out_channels must be at least 1, got {channels} and "
                f"{self.out_channels}"
            )
        if self.padding_mode not in PADDING_MODES:
            modes = ", ".join(PADDING_MODES)
            raise ValueError(f"{name}: padding_mode must be one of {modes}, got {self.padding_mode!r}")
        if self.kernel_groups < 1 or channels % self.kernel_groups:
            raise ValueError(
                f"{name}: kernel_groups must divide {channels} channels, got {self.kernel_groups}"
            )
        if not projections and self.out_channels != channels:
            raise ValueError(
                f"{name}: without projections there are {channels} channels, not {self.out_channels}"
            )
        if self.chunk < 1 or (self.chunk > 1 and not self.causal):
            raise ValueError(f"{name}: chunk must be 1 or more, and 1 unless causal, got {self.chunk}")

    def _set_sizes(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        dilation: int | Sequence[int],
        context_bins: int | None,
    ) -> None:
        """What has a number for each axis, and the bins."""
        name, axes = type(self).__name__, self.axes
        self.kernel_size = kernel_size
        self._kernel_sizes = whole_numbers(kernel_size, axes, f"{name}: kernel_size")
        if len(self._kernel_sizes) != axes:
            raise ValueError(f"{name}: kernel_size takes one number, or {axes}, got {kernel_size}")
        if any(size < 1 or size % 2 == 0 for size in self._kernel_sizes):
            raise ValueError(
                f"{name}: kernel_size must be odd so that the map keeps its size, got {kernel_size}; "
                "use 3, 5 or 7"
            )
        given = {"stride": stride, "dilation": dilation}
        self.stride, self.dilation = (
            per_axis(list(value) if isinstance(value, Sequence) else value, axes, f"{name}: {option}")
            for option, value in given.items()
        )
        bins = math.prod(self._kernel_sizes) if context_bins is None else context_bins
        (self.context_bins,) = whole_numbers(bins, 1, f"{name}: context_bins")
        if self.context_bins < 1:
            raise ValueError(f"{name}: context_bins must be at least 1, got {context_bins}")
        self._context_cells = _grid_of_bins(self._kernel_sizes, context_bins) if self.context_grid else None

    def _check_padding(self, padding: int | str | Sequence[int] | None) -> None:
        """Take options of convolutions where they say what happens here anyway."""
        if padding is None or (padding == "same" and self.stride == [1] * self.axes):
            return
        name = type(self).__name__
        used = [d * (size // 2) for d, size in zip(self.dilation, self._kernel_sizes, strict=True)]
        given = padding if isinstance(padding, str) else whole_numbers(padding, self.axes, f"{name}: padding")
        if self.causal or given != used:
            where = "before a sequence alone" if self.causal else f"by {used}"
            raise ValueError(
                f"{name}: borders are padded {where}, got padding={padding!r}: leave it out; `padding_mode` "
                "says with what"
            )

    def _projection(self, dim: int, out: int, bias: bool, **dd: Any) -> nn.Module:
        return (nn.Conv1d, PointwiseConv2d, nn.Conv3d)[self.axes - 1](dim, out, 1, bias=bias, **dd)

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels k̂ used for a map: B C *S → B G *K (1 G *K without routing), G = C kernels a sample or
        `kernel_groups`. Of a causal mixer with M chunks B G M K (1 G K without routing)."""
        kernel, alpha = self.raw_kernels(x)
        kernel = functional.lateral_inhibition(kernel, alpha)
        if not (self.causal and self.routing):
            return kernel
        return kernel.unflatten(0, (x.shape[0], chunks_of(x.shape[2], self.chunk))).transpose(1, 2)

    def raw_kernels(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernels k before lateral inhibition, and α to inhibit them with (None for none). Each chunk of
        a causal mixer counts as a sample: B·M G K."""
        if not torch.jit.is_scripting():
            self.check_input(x)
        kernel = self._context_to_kernel(self._context(x)) if self.routing else self.static_kernel[None]
        return kernel, self.alpha

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError or TypeError unless x is a map of this mixer's channels and axes."""
        _check_channels(x, self.in_channels, self.axes, type(self).__name__)

    def macs(self, *size: int) -> int:
        """Multiply-adds for one sample on a map of this size: height and width for two axes.

        Running means of a causal mixer are counted as `step` updates them.
        """
        positions = math.prod(size)
        routed = math.prod(-(-n // s) for n, s in zip(size, self.stride, strict=True))
        weights, dim, groups = math.prod(self._kernel_sizes), self.in_channels, self.kernel_groups
        count = weights * routed * dim
        if not isinstance(self.proj, nn.Identity):
            count += positions * dim * dim + routed * dim * self.out_channels
        if not self.routing:
            return count
        if self.causal:
            count += positions * self.context_bins * dim
        made = chunks_of(size[0], self.chunk) if self.causal else 1
        return count + made * self.context_bins * groups * (dim + weights)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, default in (("stride", 1), ("dilation", 1)):
            if getattr(self, name) != [default] * self.axes:
                text += f", {name}={getattr(self, name)}"
        if self.context_bins != math.prod(self._kernel_sizes):
            text += f", context_bins={self.context_bins}"
        if self.kernel_groups != self.in_channels:
            text += f", kernel_groups={self.kernel_groups}"
        text += ", kernel_bias=True" * (self.kernel_bias is not None)
        text += ", projections=False" * isinstance(self.proj, nn.Identity)
        text += f", causal=True, chunk={self.chunk}" * self.causal
        return (
            f"{text}, padding_mode={self.padding_mode!r}, routing={self.routing}, "
            f"inhibition={self.inhibition}, context_grid={self.context_grid}"
        )

    def _context(self, x: Tensor) -> Tensor:
        if self.causal:
            return functional.causal_context(x, self.context_bins, self.chunk)
        return functional.pool_context(x, self.context_bins, self._context_cells)

    def _context_to_kernel(self, context: Tensor) -> Tensor:
        """`functional.context_to_kernel` by the layers: B C n → B G *K."""
        assert self.context_proj is not None
        assert self.kernel_gen is not None
        # Contiguous: CPUs multiply strided bfloat16 many times slower.
        mixed = self.act(self.context_proj(context.transpose(1, 2).contiguous()))
        if not torch.jit.is_scripting():
            layer = self.kernel_gen
            if is_plain(layer, nn.Linear):
                kernel = functional.generate_kernel(mixed, layer.weight, layer.bias)
            else:
                kernel = layer(mixed.transpose(1, 2).contiguous())
        else:
            kernel = self.kernel_gen(mixed.transpose(1, 2).contiguous())
        if self.kernel_bias is not None:
            kernel = kernel + self.kernel_bias
        return kernel.unflatten(2, self._kernel_sizes)

    def _convolve(self, value: Tensor, kernel: Tensor, alpha: Tensor | None) -> Tensor:
        if self.causal:
            return functional.causal_depthwise_conv(value, kernel, alpha, self.chunk, self.dilation)
        return functional.dynamic_depthwise_conv(
            value, kernel, alpha, self.stride, self.dilation, self.padding_mode
        )


def inhibition_strength(model: nn.Module) -> dict[str, Tensor]:
    """λ = sigmoid(α) of every kernel, C, by the name of each mixer of a model that has inhibition."""
    return {
        name: torch.sigmoid(module.alpha.detach().float())
        for name, module in model.named_modules()
        if isinstance(module, ATConv) and module.alpha is not None
    }


def _unknown_option(name: str, option: str) -> TypeError:
    why = "there is no such option"
    if option == "groups":
        why = "`kernel_groups` is the number of kernels, and projections=False leaves channels apart"
    return TypeError(f"{name} takes no {option}: {why}")


def _grid_of_bins(sizes: list[int], bins: int | None) -> list[int]:
    """Cells of the context's grid along each axis: as the kernel's, or of `bins` cells."""
    if bins is None:
        return sizes
    cells = round(bins ** (1 / len(sizes)))
    if cells ** len(sizes) != bins:
        raise ValueError(
            f"with context_grid, context_bins must be a number to the power of {len(sizes)}, such as "
            f"{3 ** len(sizes)}, got {bins}"
        )
    return [cells] * len(sizes)


_MAPS = ("", "B {} N", "B {} H W", "B {} D H W")


def _check_channels(x: Tensor, channels: int, axes: int, name: str) -> None:
    if not torch.jit.is_tracing():
        if x.ndim != 2 + axes or x.shape[1] != channels:
            raise ValueError(
                f"{name}({channels}) takes {_MAPS[axes].format(channels)}, got {tuple(x.shape)}; "
                "channels come second (x.permute(0, 3, 1, 2) for B H W C), tokens go to ATConvTokens"
            )
        check_map(x)


torch.fx.wrap("_check_channels")  # a node of torch.fx's graphs
