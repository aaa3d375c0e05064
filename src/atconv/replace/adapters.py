"""The module in place of an attention: it is called as the attention was, and holds one ATConv mixer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atconv.modules import ATConvTokens

__all__ = [
    "ATConvAdapter",
    "ATConvBlock",
    "Call",
    "GridState",
    "GridWriter",
    "MaskCheck",
    "Size",
    "forward_arguments",
]

Size = tuple[int, int]
NO_MASK = "ATConv takes no attention mask: it sees the full map"


def forward_arguments(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


class GridState:
    """Height and width of the tokens in the current forward pass, written by the model's patch embedding.

    Gradient checkpointing runs blocks again in the backward pass. They then read the size of the last forward
    pass, so no pass of another size may lie in between. Another number of tokens raises here. As many tokens
    on another grid change the shapes of saved tensors, for which non-reentrant checkpointing raises itself.
    Reentrant checkpointing compares nothing, so here it may use one grid only for each number of tokens.
    """

    def __init__(self) -> None:
        self.size: Size | None = None
        self._with_gradients = False
        self._reentrant: dict[int, Size] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files begin without a pass."""
        return vars(GridState())

    def write(self, size: Size) -> None:
        """Called as a forward pass begins."""
        self.size = size
        self._with_gradients = torch.is_grad_enabled()

    def read(self, tokens: int, num_prefix_tokens: int = 0) -> Size:
        """The size of the grid of so many tokens.

        Raises:
            ValueError: no forward pass has begun, the tokens do not fill the grid, or reentrant checkpointing
                met two grids of as many tokens.
        """
        if self.size is None:
            raise ValueError("the grid of the tokens is not known: run the full model, not its blocks alone")
        height, width = self.size
        if isinstance(tokens, torch.fx.Proxy):  # a graph takes height and width from its own image
            return self.size
        if tokens != num_prefix_tokens + height * width:
            raise ValueError(
                f"{tokens} tokens are not {num_prefix_tokens} and a grid of {height} × {width}: tokens were "
                "dropped or added on the way, which ATConv cannot follow, or gradient checkpointing "
                "recomputes an image of another size than the last: run backward for one size before forward "
                "for the next"
            )
        # The first run of a reentrant checkpoint turns gradients off inside a pass that has them.
        if self._with_gradients and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            first = self._reentrant.setdefault(tokens, self.size)
            if first != self.size:
                raise ValueError(
                    f"grids of {first[0]} × {first[1]} and {height} × {width} have as many tokens, which "
                    "reentrant gradient checkpointing cannot tell apart: checkpoint with use_reentrant=False"
                )
        return self.size


class GridWriter:
    """A hook before the patch embedding: height and width of the input → those of the tokens.

    Args:
        embedding: the patch embedding; its first argument is the image, by position or by name.
        patch: the patch embedding → pixels of a patch along each axis.
        padded: the embedding pads images up to full patches; otherwise it cuts what exceeds them.

    Attributes:
        grid: written at every pass, read by the adapters.
    """

    def __init__(self, embedding: nn.Module, patch: Callable[[Any], Size], padded: bool) -> None:
        self.grid, self.patch, self.padded = GridState(), patch, padded
        self.image = forward_arguments(embedding)[0]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image = args[0] if args else kwargs[self.image]
        height, width = image.shape[-2:]
        down, across = self.patch(module)
        if self.padded:
            height, width = height + down - 1, width + across - 1
        self.grid.write((height // down, width // across))


@dataclass(frozen=True)
class MaskCheck:
    """A hook before a transformers model: it rejects a mask of patches. Inside the model, masks look like
    position biases, and like the masks that tracing makes."""

    position: int
    """of `attention_mask` among the arguments"""

    @classmethod
    def before(cls, model: nn.Module) -> MaskCheck:
        names = forward_arguments(model)
        return cls(names.index("attention_mask") if "attention_mask" in names else len(names))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = args[self.position] if len(args) > self.position else kwargs.get("attention_mask")
        if mask is not None:
            raise ValueError(NO_MASK)


@dataclass(frozen=True)
class Call:
    """How a library calls its attention."""

    layout: Literal["tokens", "channels_last", "channels_first"] = "tokens"
    """B N C, B H W C or B C H W"""
    arguments: tuple[str, ...] = ("x",)
    """names in order, for what is passed by position; the first is what is mixed"""
    self_attention: tuple[str, ...] = ()
    """arguments that must be absent, None or the tokens themselves"""
    masks: tuple[str, ...] = ("attn_mask", "key_padding_mask", "attention_mask", "is_causal")
    """arguments that must be absent, None or False"""
    size: str | None = None
    """the argument that holds height and width of the tokens; otherwise the patch embedding writes them"""
    returns_weights: bool = False
    """it returns tokens and attention weights: None here"""


class ATConvAdapter(nn.Module):
    """ATConv, called as the attention was. Rotary and relative positions that the attention took are ignored.
    Its state says that it replaces attention, for `describe`.

    Args:
        mixer: the operator.
        call: how it is called.

    Attributes:
        grid: written by the patch embedding; needed for tokens that come without their size.
        proj_drop: the dropout that the attention had behind its output.

    Raises:
        ValueError: in forward, there is a mask, there are other tokens to attend to, or the tokens do not
            fill the grid.
    """

    rel_pos = None  # where timm's relative-position ViTs look for biases that follow the size of the map

    def __init__(self, mixer: ATConvTokens, call: Call) -> None:
        super().__init__()
        self.mixer = mixer
        self.call = call
        self.grid: GridState | None = None
        self.proj_drop: nn.Module = nn.Identity()
        mark = torch.ones((), dtype=torch.bool, device=next(mixer.parameters()).device)
        self.register_buffer("replaces_attention", mark)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.call
        inputs = dict(zip(call.arguments[: len(args)], args, strict=True)) | kwargs
        x = inputs[call.arguments[0]]
        for name in call.self_attention:
            if inputs.get(name) is not None and inputs[name] is not x:
                raise ValueError(
                    "this attention was self-attention when it was replaced, and got other tokens as "
                    f"{name} now"
                )
        for name in call.masks:
            _reject_mask(inputs.get(name))
        height_width = None if call.size is None else inputs[call.size]
        mixed = self.mix(x, None if height_width is None else (height_width[0], height_width[1]))
        return (mixed, None) if call.returns_weights else mixed

    def mix(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Tokens or a map, in the layout of the call → same."""
        if self.call.layout == "channels_first":
            return self._mix_channels_last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.call.layout == "channels_last":
            return self._mix_channels_last(x)
        if size is None:
            assert self.grid is not None
            size = self.grid.read(x.shape[1], self.mixer.num_prefix_tokens)
        return self.proj_drop(self.mixer(x, grid_size=size))

    def _mix_channels_last(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        return self.proj_drop(self.mixer(x.flatten(1, 2), grid_size=size)).unflatten(1, size)


def _reject_mask(mask: Any) -> None:
    if mask is not None and mask is not False:
        raise ValueError(NO_MASK)


torch.fx.wrap("_reject_mask")


class ATConvBlock(ATConvAdapter):
    """In place of timm's blocks that partition the map themselves: ATConv sees the full map. Norms, MLP and
    their names stay.

    Args:
        mixer: the operator.
        call: with the layout of the block's maps.
        block: of Swin or MaxViT.
        post_norm: norms follow what they normalize, as in Swin v2.
    """

    def __init__(self, mixer: ATConvTokens, call: Call, block: Any, post_norm: bool = False) -> None:
        super().__init__(mixer, call)
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2
        self.ls1, self.ls2 = (getattr(block, name, nn.Identity()) for name in ("ls1", "ls2"))
        self.post_norm = post_norm

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """timm sets the size of its blocks' windows or grids; there are none here."""

    set_partition_size = set_input_size

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm1(self.mix(x)) if self.post_norm else self.mix(self.norm1(x))
        x = x + self.drop_path1(self.ls1(mixed))
        mixed = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return x + self.drop_path2(self.ls2(mixed))
