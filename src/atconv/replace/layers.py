"""What takes an attention's place: each is called as the attention was, and holds one ATConv mixer."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atconv.functional import dynamic_depthwise_conv2d
from atconv.modules import ATConvTokens
from atconv.ops.layout import tokens_to_map

__all__ = [
    "ATConvAttention",
    "ATConvBlock",
    "ATConvDiffusersAttention",
    "ATConvLastAttention",
    "ATConvMapAttention",
    "ATConvMultiheadAttention",
    "ATConvReplacement",
    "ATConvSizedAttention",
    "ATConvTransformersAttention",
    "Grid",
    "GridWriter",
    "MaskRefusal",
    "Size",
    "mix_tokens",
]

Size = tuple[int, int]


class Grid:
    """Height and width of the tokens in the pass that runs; the model's patch embedding writes them.

    Gradient checkpointing runs blocks a second time, in the backward pass, when other sizes may have passed
    since. So the size of every pass that is still to be gone back through is kept, and told apart by its
    number of tokens.
    """

    def __init__(self) -> None:
        self.size: Size | None = None
        self._passes: list[_Pass] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files begin without a pass, which is the model's that ran it."""
        return {"size": None, "_passes": []}

    def write(self, size: Size) -> None:
        """Of the forward pass that begins."""
        self.size = size
        if _is_eager() and torch.is_grad_enabled():
            went_back = any(one.backward is not None for one in self._passes)
            kept = [one for one in self._passes if one.is_ahead(went_back)]
            self._passes = [one for one in kept if one.tied or one.size != size]  # else they would pile up
            self._passes.append(_Pass(size, _backward()))

    def follow(self, embedding: nn.Module, inputs: Any, output: Any) -> None:
        """A hook behind the patch embedding: the pass is forgotten with its graph."""
        if self._passes and _is_eager() and isinstance(output, Tensor) and output.requires_grad:
            self._passes[-1].tie(output)

    def read(self, tokens: int) -> Size:
        """Of the pass that runs, which has so many tokens on the grid.

        Raises:
            ValueError: no pass has begun, or a backward pass recomputes one of two grids of as many tokens.
        """
        if self.size is None:
            raise ValueError("the grid of the tokens is not known: run the whole model, not its blocks alone")
        backward = _backward() if _is_eager() else None
        if backward is None:
            return self.size
        fitting = [one for one in self._passes if one.size[0] * one.size[1] == tokens]
        mine = [one for one in fitting if one.backward == backward]
        mine = mine or [one for one in fitting if one.is_ahead(went_back=False)]
        sizes = sorted({one.size for one in mine})
        if len(sizes) > 1:
            told = " and ".join(f"{height} × {width}" for height, width in sizes)
            raise ValueError(
                f"grids of {told} have as many tokens: with gradient checkpointing, run backward for one of "
                "them before the other, and passes that are not trained on under torch.no_grad()"
            )
        if not sizes:
            return self.size
        mine[0].backward = backward
        return sizes[0]


class _Pass:
    """A forward pass with gradients, until a backward pass has gone through it or its graph is gone."""

    def __init__(self, size: Size, backward: int | None) -> None:
        self.size = size
        self.backward = backward
        """which one recomputed it"""
        self._graph: weakref.ref[_Anchor] | None = None

    @property
    def tied(self) -> bool:
        """It knows whether its graph is there; not behind a frozen embedding."""
        return self._graph is not None

    def tie(self, output: Tensor) -> None:
        anchor = _Anchor()
        output.register_hook(anchor)
        self._graph = weakref.ref(anchor)

    def is_ahead(self, went_back: bool) -> bool:
        """Whether a backward pass may come; where it is not tied, until any came."""
        if self.backward is not None:
            return False
        return not went_back if self._graph is None else self._graph() is not None


class _Anchor:
    """Held by a graph as a hook that does nothing."""

    def __call__(self, gradient: Tensor) -> None: ...


def _is_eager() -> bool:
    return not torch.compiler.is_compiling()


def _backward() -> int | None:
    """Autograd's number of the backward pass that runs."""
    number = torch._C._current_graph_task_id()
    return None if number == -1 else number


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

    def register(self, embedding: nn.Module) -> Callable[[], None]:
        """Returns what takes the hooks away."""
        handles = [
            embedding.register_forward_pre_hook(self, with_kwargs=True),
            embedding.register_forward_hook(self.grid.follow),
        ]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove


@dataclass(frozen=True)
class MaskRefusal:
    """A hook before transformers' models that take a mask of patches. Further in, masks are not told from
    position biases, nor from those that tracing makes.
    """

    position: int
    """of the mask among the model's arguments"""

    @classmethod
    def before(cls, model: nn.Module) -> MaskRefusal:
        names = list(inspect.signature(model.forward).parameters)
        return cls(names.index("attention_mask") if "attention_mask" in names else len(names))

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = inputs[self.position] if len(inputs) > self.position else named.get("attention_mask")
        if given is not None:
            raise ValueError("ATConv takes no attention mask: it sees a whole map")

    def register(self, model: nn.Module) -> Callable[[], None]:
        """Returns what takes the hook away."""
        return model.register_forward_pre_hook(self, with_kwargs=True).remove


def mix_tokens(mixer: ATConvTokens, x: Tensor, size: Size, prefix: int = 0) -> Tensor:
    """ATConv over tokens of which the first are no positions of the grid.

    The spatial tokens are routed as a map, which does not see prefix tokens (class, registers). Each prefix
    token takes the mean over the values of all prefix tokens and of the routed map. But for the map's border,
    where kernels reach over zeros, that is what attention gives it where it attends to all tokens alike.

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
        return mixer(x, grid_size=size)
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
    share = prefix / (prefix + height * width)
    first = share * value[:, :prefix].mean(1, keepdim=True) + (1 - share) * routed.mean(1, keepdim=True)
    return mixer.proj(torch.cat((first.expand(-1, prefix, -1), routed), dim=1))


class ATConvReplacement(nn.Module):
    """What all of them hold: a mixer, and the dropout that the attention had behind its output."""

    def __init__(self, mixer: ATConvTokens) -> None:
        super().__init__()
        self.mixer = mixer
        self.proj_drop: nn.Module = nn.Identity()

    def mix(self, x: Tensor, size: Size, prefix: int = 0) -> Tensor:
        """Tokens B (prefix + H·W) C → same."""
        return self.proj_drop(mix_tokens(self.mixer, x, size, prefix))

    def mix_last(self, x: Tensor) -> Tensor:
        """A map B H W C → same."""
        size = (x.shape[1], x.shape[2])
        return self.mix(x.flatten(1, 2), size).unflatten(1, size)

    def mix_map(self, x: Tensor) -> Tensor:
        """A map B C H W → same."""
        mixed = self.mix(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


_MASKS = ("attn_mask", "key_padding_mask")


class ATConvAttention(ATConvReplacement):
    """For attention over B N C tokens whose grid the patch embedding knows. Masks are refused.

    Args:
        mixer: the operator.
        grid: written by the patch embedding.
        prefix: class and register tokens before the grid.
        further: names of what the attention took by position behind the tokens.
    """

    rel_pos = None  # where timm's relative-position ViTs look for biases that follow the size of the map

    def __init__(self, mixer: ATConvTokens, grid: Grid, prefix: int, further: tuple[str, ...] = ()) -> None:
        super().__init__(mixer)
        self.grid, self.prefix, self.further = grid, prefix, further

    def forward(self, x: Tensor, *by_position: Any, **named: Any) -> Tensor:
        """Whatever else the attention took (rotary or relative positions) is of no use here.

        Raises:
            ValueError: a mask is given, or the tokens do not fill the grid.
        """
        given = {**dict(zip(self.further, by_position, strict=False)), **named}
        if given.get("is_causal") or any(given.get(mask) is not None for mask in _MASKS):
            raise ValueError("ATConv takes no attention mask: it sees a whole map")
        return self.mix(x, self.grid.read(x.shape[1] - self.prefix), self.prefix)


class ATConvTransformersAttention(ATConvAttention):
    """For transformers' attention, which also gives weights: there are none here. `MaskRefusal` has seen to
    masks."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *masks: Any, **others: Any
    ) -> tuple[Tensor, None]:
        return super().forward(hidden_states), None


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
        self, query: Tensor, key: Tensor, value: Tensor, *by_position: Any, **named: Any
    ) -> tuple[Tensor, None]:
        if key is not query or value is not query:
            raise ValueError("this attention was self-attention when it was replaced, and got other keys now")
        return super().forward(query, *by_position, **named), None


class ATConvLastAttention(ATConvReplacement):
    """For attention over B H W C maps, shifted windows included: the whole map is one map here."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_last(x)


class ATConvMapAttention(ATConvReplacement):
    """For attention over B C H W maps."""

    def forward(self, x: Tensor, *positions: Any, **others: Any) -> Tensor:
        return self.mix_map(x)


class ATConvSizedAttention(ATConvReplacement):
    """For attention that is given tokens B N C and their height and width (PVTv2)."""

    def forward(self, x: Tensor, feat_size: Any) -> Tensor:
        return self.mix(x, (int(feat_size[0]), int(feat_size[1])))


class ATConvBlock(ATConvReplacement):
    """For timm's blocks that partition the map themselves: ATConv sees the whole map. Norms, MLP and their
    names stay.

    Args:
        block: of Swin or MaxViT, over maps B H W C, or B C H W.
        mixer: the operator.
        post_norm: norms follow what they norm, as in Swin v2.
        channels_first: maps are B C H W.
    """

    def __init__(
        self, block: Any, mixer: ATConvTokens, post_norm: bool = False, channels_first: bool = False
    ) -> None:
        super().__init__(mixer)
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2
        self.ls1, self.ls2 = (getattr(block, name, nn.Identity()) for name in ("ls1", "ls2"))
        self.post_norm, self.channels_first = post_norm, channels_first

    def set_input_size(self, *size: Any, **others: Any) -> None:
        """timm tells its blocks the size of their windows or grids; there are none here."""

    set_partition_size = set_input_size

    def forward(self, x: Tensor) -> Tensor:
        attend = self.mix_map if self.channels_first else self.mix_last
        mixed = self.norm1(attend(x)) if self.post_norm else attend(self.norm1(x))
        x = x + self.drop_path1(self.ls1(mixed))
        mixed = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return x + self.drop_path2(self.ls2(mixed))
