"""What takes an attention's place: each is called as the attention was, and holds one ATConv mixer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atconv.functional import dynamic_depthwise_conv2d
from atconv.modules import ATConvTokens, tokens_to_map

__all__ = [
    "REPLACEMENTS",
    "ATConvAttention",
    "ATConvDiffusersAttention",
    "ATConvLastAttention",
    "ATConvMapAttention",
    "ATConvMultiheadAttention",
    "ATConvSizedAttention",
    "ATConvSwinBlock",
    "ATConvTransformersAttention",
    "Grid",
    "GridWriter",
    "Size",
    "mix_tokens",
]

Size = tuple[int, int]


class Grid:
    """Height and width of the tokens in the pass that runs; the model's patch embedding writes them.

    Gradient checkpointing runs blocks a second time, in the backward pass, when other sizes may have passed
    since. So the sizes since the last backward pass are kept, and told apart by their number of tokens.
    """

    def __init__(self) -> None:
        self.size: Size | None = None
        self._since: set[Size] = set()
        self._recomputed = False

    def write(self, size: Size) -> None:
        """Of the forward pass that begins."""
        self.size = size
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            if self._recomputed:
                self._since, self._recomputed = set(), False
            self._since.add(size)

    def read(self, tokens: int) -> Size:
        """Of the pass that runs, which has so many tokens on the grid.

        Raises:
            ValueError: no pass has begun, or a backward pass recomputes one of two grids of as many tokens.
        """
        if self.size is None:
            raise ValueError("the grid of the tokens is not known: run the whole model, not its blocks alone")
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return self.size
        self._recomputed = True
        fitting = [size for size in self._since if size[0] * size[1] == tokens]
        if len(fitting) > 1:
            told = " and ".join(f"{height} × {width}" for height, width in sorted(fitting))
            raise ValueError(
                f"grids of {told} have as many tokens: with gradient checkpointing, run backward for one of "
                "them before the other, and passes that are not trained on under torch.no_grad()"
            )
        return fitting[0] if fitting else self.size


class GridWriter:
    """A hook before the patch embedding: input height and width → those of the tokens.

    Args:
        grid: written at every pass, read by the mixers behind.
        patch: the patch embedding → pixels of a patch along each axis.
        padded: the embedding pads images up to whole patches; else what is left over is cut.
        image: name of the embedding's argument that is the image, where it is given by name.
    """

    def __init__(self, grid: Grid, patch: Callable[[Any], Size], padded: bool, image: str) -> None:
        self.grid, self.patch, self.padded, self.image = grid, patch, padded, image

    @classmethod
    def before(cls, embedding: nn.Module, patch: Callable[[Any], Size], padded: bool) -> GridWriter:
        """One for an embedding whose first argument is the image."""
        return cls(Grid(), patch, padded, next(iter(inspect.signature(embedding.forward).parameters)))

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        image = inputs[0] if inputs else named[self.image]
        height, width = image.shape[-2:]
        down, across = self.patch(module)
        extra = (down - 1, across - 1) if self.padded else (0, 0)
        self.grid.write(((height + extra[0]) // down, (width + extra[1]) // across))


def mix_tokens(mixer: ATConvTokens, x: Tensor, size: Size, prefix: int = 0) -> Tensor:
    """ATConv over tokens of which the first are no positions of the grid.

    The spatial tokens are routed as a map. A prefix token (class, registers) takes the mean of its own value
    and those of the routed map: what attention gives it where it attends to all of them alike.

    Args:
        mixer: its weights.
        x: tokens, B (prefix + H·W) C.
        size: H and W.
        prefix: how many tokens come before the grid.

    Returns:
        tokens, as `x`.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    if prefix == 0:
        return mixer(x, grid=size)
    height, width = size
    if x.shape[1] != prefix + height * width:
        raise ValueError(
            f"{x.shape[1]} tokens are not {prefix} and a grid of {height} × {width}: tokens were dropped or "
            "added on the way, which ATConv cannot follow"
        )
    kernel = mixer.kernels(tokens_to_map(x[:, prefix:], *size))
    value = mixer.value_proj(x)
    routed = dynamic_depthwise_conv2d(tokens_to_map(value[:, prefix:], *size), kernel)
    routed = routed.permute(0, 2, 3, 1).flatten(1, 2)
    first = (value[:, :prefix] + routed.sum(1, keepdim=True)) / (1 + height * width)
    return mixer.out_proj(torch.cat((first, routed), dim=1))


class ATConvAttention(nn.Module):
    """For attention over B N C tokens whose grid the patch embedding knows. Masks are refused.

    Args:
        mixer: the operator.
        grid: written by the patch embedding.
        prefix: class and register tokens before the grid.
    """

    def __init__(self, mixer: ATConvTokens, grid: Grid, prefix: int) -> None:
        super().__init__()
        self.mixer, self.grid, self.prefix = mixer, grid, prefix

    def forward(self, x: Tensor, *positions: Any, attn_mask: Any = None, **others: Any) -> Tensor:
        """Whatever else the attention took (rotary or relative positions) is of no use here.

        Raises:
            ValueError: a mask is given, or the tokens do not fill the grid.
        """
        if attn_mask is not None or others.get("is_causal"):
            raise ValueError("ATConv takes no attention mask: it sees a whole map")
        return mix_tokens(self.mixer, x, self.grid.read(x.shape[1] - self.prefix), self.prefix)


class ATConvTransformersAttention(ATConvAttention):
    """For transformers' attention, which also gives weights: there are none here."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Any = None, **others: Any
    ) -> tuple[Tensor, None]:
        return super().forward(hidden_states, attn_mask=attention_mask), None


class ATConvDiffusersAttention(ATConvAttention):
    """For diffusers' attention where it is self-attention over image tokens."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        **others: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            raise ValueError(
                "this attention was self-attention when it was replaced, and got other tokens now"
            )
        return super().forward(hidden_states, attn_mask=attention_mask)


class ATConvMultiheadAttention(ATConvAttention):
    """For torchvision's call of nn.MultiheadAttention: query, key and value are one tensor."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True, **others: Any
    ) -> tuple[Tensor, None]:
        return super().forward(query, **others), None


class ATConvLastAttention(nn.Module):
    """For attention over B H W C maps, shifted windows included: the whole map is one map here."""

    def __init__(self, mixer: ATConvTokens) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return _mix_last(self.mixer, x)


class ATConvMapAttention(nn.Module):
    """For attention over B C H W maps."""

    def __init__(self, mixer: ATConvTokens) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, *positions: Any, **others: Any) -> Tensor:
        mixed = mix_tokens(self.mixer, x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class ATConvSizedAttention(nn.Module):
    """For attention that is given tokens B N C and their height and width (PVTv2)."""

    def __init__(self, mixer: ATConvTokens) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, feat_size: Any) -> Tensor:
        return mix_tokens(self.mixer, x, (int(feat_size[0]), int(feat_size[1])))


class ATConvSwinBlock(nn.Module):
    """timm's Swin block with ATConv over the whole map in place of its (shifted) windows. B H W C → same.

    timm partitions windows in the block itself, so the block is replaced; norms, MLP and their names stay.
    """

    def __init__(self, block: Any, mixer: ATConvTokens) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2
        self.mixer = mixer

    def set_input_size(self, *size: Any, **others: Any) -> None:
        """timm tells its blocks the size of their windows; there are none here."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(_mix_last(self.mixer, self.norm1(x)))
        tokens = x.flatten(1, 2)
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return tokens.view_as(x)


def _mix_last(mixer: ATConvTokens, x: Tensor) -> Tensor:
    """ATConv over a map B H W C."""
    size = (x.shape[1], x.shape[2])
    return mixer(x.flatten(1, 2), grid=size).unflatten(1, size)


REPLACEMENTS: tuple[type[nn.Module], ...] = (
    ATConvAttention,
    ATConvLastAttention,
    ATConvMapAttention,
    ATConvSizedAttention,
    ATConvSwinBlock,
)
