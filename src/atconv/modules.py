"""ATConv as modules: `ATConv2d` for maps (B C H W), `ATConvTokens` for tokens (B N C).

Thin: they own the weights and call `atconv.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from atconv import functional

__all__ = ["ATConv2d", "ATConvTokens", "inhibition_strength"]


class _ATConvBase(nn.Module):
    """The weights of one ATConv mixer and the map-to-map computation that both modules share."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        act_layer: Callable[[], nn.Module],
        bias: bool,
        routing: bool,
        inhibition: bool,
        context_grid: bool,
        projection: Callable[[int, int, bool], nn.Module],
    ) -> None:
        super().__init__()
        _check_sizes(type(self).__name__, dim, kernel_size)
        bins = kernel_size**2
        self.dim = dim
        self.kernel_size = kernel_size
        self.routing = routing
        self.inhibition = inhibition
        self.context_grid = context_grid
        self.context_proj: nn.Linear | None = None
        self.kernel_gen: nn.Linear | None = None
        if routing:
            self.context_proj = nn.Linear(dim, dim, bias)
            self.act = act_layer()
            self.kernel_gen = nn.Linear(bins, bins, bias)
        else:
            self.static_kernel = nn.Parameter(torch.empty(dim, kernel_size, kernel_size))
            # The bound nn.Conv2d takes for a depthwise kernel.
            nn.init.uniform_(self.static_kernel, -1 / kernel_size, 1 / kernel_size)
        self.alpha: nn.Parameter | None = nn.Parameter(torch.zeros(dim)) if inhibition else None
        self.value_proj = projection(dim, dim, bias)
        self.out_proj = projection(dim, dim, bias)

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels k̂ used for a map: B C H W → B C K K (1 C K K without routing)."""
        self._check_input(x)
        if self.context_proj is not None and self.kernel_gen is not None:
            kernel = functional.context_to_kernel(
                functional.pool_context(x, self.kernel_size**2, self.context_grid),
                self.context_proj.weight,
                self.context_proj.bias,
                self.kernel_gen.weight,
                self.kernel_gen.bias,
                self.act,
            )
        else:
            kernel = self.static_kernel[None]
        return kernel if self.alpha is None else functional.lateral_inhibition(kernel, self.alpha)

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

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(
                f"{type(self).__name__}(dim={self.dim}) takes B {self.dim} H W, got {tuple(x.shape)}; "
                "channels come second (x.permute(0, 3, 1, 2) for B H W C), tokens go to ATConvTokens"
            )
        functional.check_map(x, "x")


class ATConv2d(_ATConvBase):
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

    Raises:
        ValueError: `dim` < 1, `kernel_size` even or < 1; in forward, a map of another shape.
        TypeError: in forward, an integer map.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        routing: bool = True,
        inhibition: bool = True,
        context_grid: bool = False,
    ) -> None:
        super().__init__(dim, kernel_size, act_layer, bias, routing, inhibition, context_grid, _conv1x1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernels(x)
        return self.out_proj(functional.dynamic_depthwise_conv2d(self.value_proj(x), kernel))


class ATConvTokens(_ATConvBase):
    """Attentive convolution on tokens laid out on a grid, row by row: B N C → B N C.

    >>> mixer = ATConvTokens(64)
    >>> mixer(torch.randn(2, 196, 64)).shape                  # a 14 × 14 grid, inferred
    torch.Size([2, 196, 64])
    >>> mixer(torch.randn(2, 192, 64), grid=(12, 16)).shape   # a grid that is not square, given
    torch.Size([2, 192, 64])

    Args: as `ATConv2d`. All N tokens must be positions of the grid: a class token or registers
    have no place on it, so split them off first.

    Raises:
        ValueError: as `ATConv2d`; N is not H·W of the grid, or no grid is given and N is not a square.
        TypeError: in forward, integer tokens.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
        routing: bool = True,
        inhibition: bool = True,
        context_grid: bool = False,
    ) -> None:
        super().__init__(dim, kernel_size, act_layer, bias, routing, inhibition, context_grid, nn.Linear)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(
                f"ATConvTokens(dim={self.dim}) takes B N {self.dim}, got {tuple(x.shape)}; "
                "maps B C H W go to ATConv2d"
            )
        height, width = _square_grid(x.shape[1]) if grid is None else grid
        if height * width != x.shape[1]:
            raise ValueError(
                f"ATConvTokens: {x.shape[1]} tokens do not fill a grid of {height} × {width} = "
                f"{height * width}; pass grid=(height, width) of the tokens, without class or register tokens"
            )
        kernel = self.kernels(tokens_to_map(x, height, width))
        routed = functional.dynamic_depthwise_conv2d(tokens_to_map(self.value_proj(x), height, width), kernel)
        return self.out_proj(routed.permute(0, 2, 3, 1).flatten(1, 2))


def inhibition_strength(model: nn.Module) -> dict[str, Tensor]:
    """λ = sigmoid(α) of every channel, C, by the name of each mixer of a model that has inhibition."""
    return {
        name: torch.sigmoid(module.alpha.detach().float())
        for name, module in model.named_modules()
        if isinstance(module, _ATConvBase) and module.alpha is not None
    }


def _conv1x1(in_channels: int, out_channels: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """B (H·W) C → B C H W, a view."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _square_grid(count: int) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(
            f"ATConvTokens: {count} tokens are not a square grid; pass grid=(height, width). "
            "If a class token is among them, split it off first"
        )
    return side, side


def _check_sizes(name: str, dim: int, kernel_size: int) -> None:
    if dim < 1:
        raise ValueError(f"{name}: dim must be at least 1, got {dim}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"{name}: kernel_size must be odd so that the map keeps its size, got {kernel_size}; "
            "use 3, 5 or 7"
        )
