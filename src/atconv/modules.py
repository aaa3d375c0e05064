"""ATConv as modules: `ATConv2d` for maps (B C H W), `ATConvTokens` for tokens (B N C).

Thin: they own the layers and compose the steps of `atconv.functional` with them. Layers are called, so that
hooks, LoRA, offload, quantization and FSDP act on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from atconv import functional
from atconv.ops.layout import map_to_tokens, tokens_to_map
from atconv.ops.plain import is_plain

__all__ = ["ATConv2d", "ATConvTokens", "inhibition_strength"]


class _ATConv(nn.Module):
    """The layers of one ATConv mixer and the computation that both modules share."""

    __constants__ = ("routing",)
    _projection: Callable[..., nn.Module]

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        routing: bool = True,
        inhibition: bool = True,
        context_grid: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._check_sizes(dim, kernel_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        bins = kernel_size**2
        self.dim = dim
        self.kernel_size = kernel_size
        self.routing = routing
        self.inhibition = inhibition
        self.context_grid = context_grid
        self.context_proj: nn.Linear | None = None
        self.kernel_gen: nn.Linear | None = None
        if routing:
            self.context_proj = nn.Linear(dim, dim, bias=bias, **dd)
            self.act = act_layer()
            self.kernel_gen = nn.Linear(bins, bins, bias=bias, **dd)
        else:
            self.static_kernel = nn.Parameter(torch.empty(dim, kernel_size, kernel_size, **dd))
            # The bound nn.Conv2d takes for a depthwise kernel.
            nn.init.uniform_(self.static_kernel, -1 / kernel_size, 1 / kernel_size)
        self.alpha: nn.Parameter | None = nn.Parameter(torch.zeros(dim, **dd)) if inhibition else None
        self.value_proj = self._projection(dim, dim, bias=bias, **dd)
        self.proj = self._projection(dim, dim, bias=bias, **dd)

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels k̂ used for a map: B C H W → B C K K (1 C K K without routing)."""
        kernel, alpha = self.raw_kernels(x)
        return kernel if alpha is None else functional.lateral_inhibition(kernel, alpha)

    def raw_kernels(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernels k before lateral inhibition, and α to inhibit them with (None for none)."""
        if not torch.jit.is_scripting():
            _check_map(x, self.dim, type(self).__name__)
        if self.routing:
            kernel = self._context_to_kernel(
                functional.pool_context(x, self.kernel_size * self.kernel_size, self.context_grid)
            )
        else:
            kernel = self.static_kernel[None]
        return kernel, self.alpha

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for one sample on a map of height × width positions."""
        positions, bins, dim = height * width, self.kernel_size**2, self.dim
        count = 2 * positions * dim * dim + bins * positions * dim
        return count + bins * dim * dim + bins * bins * dim if self.routing else count

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, kernel_size={self.kernel_size}, routing={self.routing}, "
            f"inhibition={self.inhibition}, context_grid={self.context_grid}"
        )

    def _context_to_kernel(self, context: Tensor) -> Tensor:
        """`functional.context_to_kernel` by the layers: B C n → B C K K."""
        assert self.context_proj is not None
        assert self.kernel_gen is not None
        # Contiguous: CPUs multiply strided bfloat16 many times slower.
        mixed = self.act(self.context_proj(context.transpose(1, 2).contiguous()))
        size = (self.kernel_size, self.kernel_size)
        if not torch.jit.is_scripting():
            layer = self.kernel_gen
            if is_plain(layer, nn.Linear):
                return functional.generate_kernel(mixed, layer.weight, layer.bias).unflatten(2, size)
        return self.kernel_gen(mixed.transpose(1, 2).contiguous()).unflatten(2, size)

    def _check_sizes(self, dim: int, kernel_size: int) -> None:
        name = type(self).__name__
        if dim < 1:
            raise ValueError(f"{name}: dim must be at least 1, got {dim}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"{name}: kernel_size must be odd so that the map keeps its size, got {kernel_size}; "
                "use 3, 5 or 7"
            )


class ATConv2d(_ATConv):
    """Attentive convolution on maps, a drop-in token mixer: B C H W → B C H W.

    >>> mixer = ATConv2d(64)
    >>> mixer(torch.randn(2, 64, 14, 14)).shape
    torch.Size([2, 64, 14, 14])

    Args:
        dim: channels C.
        kernel_size: odd K.
        act_layer: activation between context projection and kernel generator.
        bias: biases in all four projections.
        routing: False learns one static K×K kernel a channel in place of content-made kernels.
        inhibition: False drops lateral inhibition (λ = 0).
        context_grid: make the kernels from the means of a K×K grid of cells, not of K² raster stretches; the
            released weights take the latter.
        device, dtype: of the parameters.

    Raises:
        ValueError: `dim` < 1, `kernel_size` even or < 1; in forward, a map of another shape.
        TypeError: in forward, an integer map.
    """

    _projection = staticmethod(partial(nn.Conv2d, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        kernel, alpha = self.raw_kernels(x)
        return self.proj(functional.dynamic_depthwise_conv2d(self.value_proj(x), kernel, alpha))


class ATConvTokens(_ATConv):
    """Attentive convolution on tokens laid out on a grid, row by row: B N C → B N C.

    >>> mixer = ATConvTokens(64)
    >>> mixer(torch.randn(2, 196, 64)).shape                       # a 14 × 14 grid, inferred
    torch.Size([2, 196, 64])
    >>> mixer(torch.randn(2, 192, 64), grid_size=(12, 16)).shape   # a grid that is not square, given
    torch.Size([2, 192, 64])
    >>> ATConvTokens(64, num_prefix_tokens=1)(torch.randn(2, 197, 64)).shape   # a class token before it
    torch.Size([2, 197, 64])

    Kernels are made from the tokens of the grid alone. Each prefix token takes the mean over the values of
    all prefix tokens and of the routed map. But for the map's border, where kernels reach over zeros, that is
    what attention gives a token that attends to all tokens alike.

    Args: as `ATConv2d`, and
        num_prefix_tokens: class and register tokens that come before the grid.

    Raises:
        ValueError: as `ATConv2d`; N is not that of the grid and the prefix tokens, or no grid is given and
            theirs is not a square.
        TypeError: in forward, integer tokens.
    """

    _projection = nn.Linear

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        routing: bool = True,
        inhibition: bool = True,
        context_grid: bool = False,
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, kernel_size, act_layer, bias, routing, inhibition, context_grid, device, dtype)
        if num_prefix_tokens < 0:
            raise ValueError(f"ATConvTokens: num_prefix_tokens must be at least 0, got {num_prefix_tokens}")
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
        """Mix tokens B (prefix + H·W) C, with `grid_size` (H, W)."""
        height, width = _grid_size(x, grid_size, self.dim, self.num_prefix_tokens)
        prefix = self.num_prefix_tokens
        kernel, alpha = self.raw_kernels(tokens_to_map(x[:, prefix:], height, width))
        value = self.value_proj(x)
        routed = map_to_tokens(
            functional.dynamic_depthwise_conv2d(
                tokens_to_map(value[:, prefix:], height, width), kernel, alpha
            )
        )
        if prefix:
            share = prefix / (prefix + height * width)
            of_prefix, of_map = (tokens.mean(1, keepdim=True) for tokens in (value[:, :prefix], routed))
            mixed = share * of_prefix + (1 - share) * of_map
            routed = torch.cat((mixed.expand(-1, prefix, -1), routed), dim=1)
        return self.proj(routed)

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds for one sample whose grid has height × width tokens."""
        return super().macs(height, width) + 2 * self.num_prefix_tokens * self.dim**2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_prefix_tokens={self.num_prefix_tokens}"


def inhibition_strength(model: nn.Module) -> dict[str, Tensor]:
    """λ = sigmoid(α) of every channel, C, by the name of each mixer of a model that has inhibition."""
    return {
        name: torch.sigmoid(module.alpha.detach().float())
        for name, module in model.named_modules()
        if isinstance(module, _ATConv) and module.alpha is not None
    }


def _check_map(x: Tensor, dim: int, name: str) -> None:
    if not torch.jit.is_tracing():
        if x.ndim != 4 or x.shape[1] != dim:
            raise ValueError(
                f"{name}(dim={dim}) takes B {dim} H W, got {tuple(x.shape)}; "
                "channels come second (x.permute(0, 3, 1, 2) for B H W C), tokens go to ATConvTokens"
            )
        functional.check_map(x)


def _grid_size(
    x: Tensor, grid_size: tuple[int, int] | None, dim: int, num_prefix_tokens: int
) -> tuple[int, int]:
    """Check the shape of tokens. Returns height and width of their grid."""
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(
            f"ATConvTokens(dim={dim}) takes B N {dim}, got {tuple(x.shape)}; maps B C H W go to ATConv2d"
        )
    count = x.shape[1] - num_prefix_tokens
    height, width = grid_size or 2 * (math.isqrt(max(count, 0)),)
    if height * width != count and grid_size is None:
        raise ValueError(
            f"ATConvTokens: {count} tokens are not a square grid; pass grid_size=(height, width), or "
            "num_prefix_tokens if class or register tokens come before the grid"
        )
    if height * width != count:
        raise ValueError(
            f"ATConvTokens: {count} tokens do not fill a grid of {height} × {width} = {height * width}; "
            "pass grid_size=(height, width) of the tokens, and num_prefix_tokens if class or register "
            f"tokens come before them (now {num_prefix_tokens})"
        )
    return height, width


for _check in ("_check_map", "_grid_size"):  # of torch.fx's graphs
    torch.fx.wrap(_check)
