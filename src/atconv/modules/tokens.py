"""ATConv on tokens, B N C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from atconv import functional
from atconv.modules.stepping import Stepping
from atconv.ops.checking import whole_numbers
from atconv.ops.layout import map_to_tokens, tokens_to_map

__all__ = ["ATConvTokens", "mix_prefix"]


class ATConvTokens(Stepping):
    """Attentive convolution on tokens laid out on a grid, row by row: B N C → B N C.

    >>> mixer = ATConvTokens(64)
    >>> mixer(torch.randn(2, 196, 64)).shape                       # a 14 × 14 grid, inferred
    torch.Size([2, 196, 64])
    >>> mixer(torch.randn(2, 192, 64), grid_size=(12, 16)).shape   # a grid that is not square, given
    torch.Size([2, 192, 64])
    >>> ATConvTokens(64, num_prefix_tokens=1)(torch.randn(2, 197, 64)).shape   # a class token before it
    torch.Size([2, 197, 64])
    >>> ATConvTokens(64, axes=1)(torch.randn(2, 50, 64)).shape     # a sequence; axes=3 for videos
    torch.Size([2, 50, 64])

    Kernels are made from the tokens of the grid alone. Each prefix token takes the mean over the values of
    all prefix tokens and of the routed map. But for the map's border, where kernels reach over zeros, that is
    what attention gives a token that attends to all tokens alike. With `causal`, on a grid of one axis, an
    output depends on its own token and those before it, a prefix token on the mean of the prefix tokens up to
    itself; `step` takes the tokens of the grid one at a time.

    Args: `dim` channels C, the options of `ATConv2d` but for stride and channels of the output, and
        num_prefix_tokens: class and register tokens that come before the grid.
        axes: of the grid, 1 to 3.

    Raises:
        ValueError: as `ATConv2d`; N is not that of the grid and the prefix tokens, or no grid is given and
            theirs is not a square (a cube for 3 axes).
        TypeError: in forward, integer tokens.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int | Sequence[int] = 3,
        num_prefix_tokens: int = 0,
        axes: int = 2,
        **options: Any,
    ) -> None:
        if axes not in (1, 2, 3):
            raise ValueError(f"ATConvTokens: a grid has 1, 2 or 3 axes, got {axes}")
        self.axes = axes
        super().__init__(dim, kernel_size=kernel_size, **options)
        whole_numbers(num_prefix_tokens, 1, "ATConvTokens: num_prefix_tokens")
        if num_prefix_tokens < 0:
            raise ValueError(f"ATConvTokens: num_prefix_tokens must be at least 0, got {num_prefix_tokens}")
        if self.out_channels != dim or self.stride != [1] * axes:
            raise ValueError(
                "ATConvTokens: stride and out_channels are for maps: as many tokens leave as come"
            )
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Tensor, grid_size: Sequence[int] | None = None) -> Tensor:
        """Mix tokens B (prefix + N) C, with `grid_size` (H, W), (N,) or (D, H, W)."""
        grid = _resolve_grid_size(x, grid_size, self.in_channels, self.num_prefix_tokens, self.axes)
        prefix = self.num_prefix_tokens
        kernel, alpha = self.raw_kernels(tokens_to_map(x[:, prefix:], grid))
        value = self.value_proj(x)
        routed = map_to_tokens(self._convolve(tokens_to_map(value[:, prefix:], grid), kernel, alpha))
        if prefix:
            routed = torch.cat((mix_prefix(value[:, :prefix], routed, self.causal), routed), dim=1)
        return self.proj(routed) if self.bias is None else self.proj(routed) + self.bias

    def macs(self, *size: int) -> int:
        """Multiply-adds for one sample whose grid has this size."""
        return super().macs(*size) + 2 * self.num_prefix_tokens * self.in_channels**2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_prefix_tokens={self.num_prefix_tokens}"

    def _projection(self, dim: int, out: int, bias: bool, **dd: Any) -> nn.Module:
        return nn.Linear(dim, out, bias=bias, **dd)

    def _project_position(self, layer: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = layer(x)
        return y


def mix_prefix(prefix: Tensor, routed: Tensor, causal: bool = False) -> Tensor:
    """What class and register tokens, which have no place on the map, become: the mean over all values, their
    own and those of the routed map.

    Args:
        prefix: values of P tokens, B P C.
        routed: the routed map as tokens, B N C.
        causal: of each token, the mean over the prefix tokens up to itself: the map comes after them.

    Returns:
        B P C, the same for each of the P unless causal.
    """
    if causal:
        return functional.causal_context(prefix.mT, bins=1).reshape(prefix.shape)
    count, positions = prefix.shape[1], routed.shape[1]
    share = count / (count + positions)  # of two means: sums of many tokens overflow half precision
    mixed = share * prefix.mean(1, keepdim=True) + (1 - share) * routed.mean(1, keepdim=True)
    return mixed.expand(-1, count, -1)


_GRIDS = ("", "(length,)", "(height, width)", "(depth, height, width)")


def _resolve_grid_size(
    x: Tensor, grid_size: Sequence[int] | None, dim: int, num_prefix_tokens: int, axes: int
) -> list[int]:
    """Check the shape of tokens. Returns the sizes of their grid."""
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(
            f"ATConvTokens({dim}) takes B N {dim}, got {tuple(x.shape)}; maps B C H W go to ATConv2d"
        )
    count = x.shape[1] - num_prefix_tokens
    if grid_size is None:
        if axes == 1:
            root = count  # it may be a symbol of an export, of which there are no roots
        else:
            root = math.isqrt(max(count, 0)) if axes == 2 else round(max(count, 0) ** (1 / axes))
        grid_size = axes * (root,)
        if math.prod(grid_size) != count:
            raise ValueError(
                f"ATConvTokens: {count} tokens are not a {'cube' if axes == 3 else 'square grid'}; pass "
                f"grid_size={_GRIDS[axes]}, or num_prefix_tokens if class or register tokens come before the "
                "grid"
            )
    if count < 0 or len(grid_size) != axes or math.prod(grid_size) != count:
        raise ValueError(
            f"ATConvTokens: {count} tokens do not fill a grid of {' × '.join(map(str, grid_size))} = "
            f"{math.prod(grid_size)}; pass grid_size={_GRIDS[axes]} of the tokens, and "
            f"num_prefix_tokens if class or register tokens come before them (now {num_prefix_tokens})"
        )
    return list(grid_size)


torch.fx.wrap("_resolve_grid_size")  # a node of torch.fx's graphs
