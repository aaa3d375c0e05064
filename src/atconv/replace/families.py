"""Where attention sits in the models people use, and what it takes to put ATConv there.

A family is known by the names of its classes, so that none of the libraries is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from atconv.modules import ATConvTokens
from atconv.replace.adapters import (
    ATConvAdapter,
    ATConvBlock,
    Call,
    GridState,
    GridWriter,
    MaskCheck,
    Size,
    forward_arguments,
)
from atconv.replace.place import Place
from atconv.replace.projections import (
    Projections,
    from_map_qkv,
    from_qkv,
    last_rows,
    separate,
    unknown_layer,
    weights_of,
)

__all__ = ["Site", "find_sites"]

Writers = dict[nn.Module, GridWriter]


@dataclass(eq=False)
class Site(Place):
    """An attention of a model: replaced by `make`, or kept for a reason."""

    dim: int = 0
    make: Callable[[ATConvTokens], ATConvAdapter] | None = None
    projections: Projections | None = None
    grid: GridState | None = None
    """of its tokens"""
    num_prefix_tokens: int = 0
    dropout: float = 0.0
    """behind the output projection"""

    @property
    def copied(self) -> bool:
        """ATConv takes over its projections."""
        return self.projections is not None


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention of a model, in order of its modules. Those inside a replaced block are not listed."""
    writers: Writers = {}
    sites: list[Site] = []
    for name, module in model.named_modules():
        if any(not site.name or name.startswith(f"{site.name}.") for site in sites):
            continue
        site = _examine(_Attention(model, name, module, writers))
        if site is not None:
            whole = Site(name, reason="it is the whole model: give the model that holds it")
            sites.append(site if name else whole)
    return sites


class _Attention:
    """An attention, or a block that holds one, where it stands in its model."""

    def __init__(self, model: nn.Module, name: str, module: Any, writers: Writers) -> None:
        self.model, self.name, self.module, self.writers = model, name, module, writers
        self.kind = type(module).__name__
        self.inner: Any = getattr(module, "attn", module)

    def above(self) -> Iterator[nn.Module]:
        """The modules that hold it, the nearest first."""
        parts = self.name.split(".")
        for length in range(len(parts) - 1, -1, -1):
            yield self.model.get_submodule(".".join(parts[:length]))

    def owner(self, attribute: str) -> Any:
        """The nearest module above that has the attribute, or None."""
        return next((module for module in self.above() if getattr(module, attribute, None) is not None), None)

    def keep(self, reason: str) -> Site:
        return Site(self.name, reason=reason)

    def site(
        self, dim: int, projections: Projections | None, num_prefix_tokens: int = 0, **call: Any
    ) -> Site:
        """Of an attention; `call` is its `Call`."""
        make = partial(ATConvAdapter, call=Call(arguments=forward_arguments(self.module), **call))
        return Site(
            self.name, dim=dim, make=make, projections=projections, num_prefix_tokens=num_prefix_tokens
        )

    def block(self, dim: int, projections: Projections | None, call: Call, post_norm: bool = False) -> Site:
        """Of a full block."""
        make = partial(ATConvBlock, call=call, block=self.module, post_norm=post_norm)
        return Site(self.name, dim=dim, make=make, projections=projections)

    def on_grid(
        self, site: Site, embedding: nn.Module, patch: Callable[[Any], Size], padded: bool = False
    ) -> Site:
        """The site, with a grid that the patch embedding writes: one for all attention behind it."""
        writer = self.writers.setdefault(embedding, GridWriter(embedding, patch, padded))
        site.grid = writer.grid
        site.hooks += ((embedding, writer),)
        return site


def _examine(at: _Attention) -> Site | None:
    if isinstance(at.module, ATConvAdapter):
        return at.keep("it is ATConv already")
    finder = _finder(at.module)
    if finder is not None:
        reason = unknown_layer(at.inner)
        site = at.keep(reason) if reason else finder(at)
        site.dropout = site.dropout or _output_dropout(at.inner)
        return site
    named = (re.search("Att(entio)?n", at.kind) and "Block" not in at.kind) or at.kind in _ATTENTION
    holds_known = any(_finder(inner) for inner in at.module.modules())  # a model may be named after it too
    if named and not holds_known:
        joint = "it mixes text and image tokens" if _is_joint(at) else ""
        return at.keep(joint or "this attention is not one that ATConv knows")
    return None


def _finder(module: nn.Module) -> Callable[[_Attention], Site] | None:
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), None)


def _output_dropout(attention: Any) -> float:
    """Of timm's proj_drop, or the second layer of diffusers' to_out."""
    layers = (getattr(attention, "proj_drop", None), *list(getattr(attention, "to_out", []))[1:2])
    return next((layer.p for layer in layers if isinstance(layer, nn.Dropout)), 0.0)


def _is_joint(at: _Attention) -> bool:
    """Whether text and image tokens attend to each other in it, in one of diffusers' models."""
    mixing = ("SingleTransformerBlock", "CogVideoXBlock")  # which take both as one sequence
    inside = any(kind in type(above).__name__ for kind in mixing for above in at.above())
    return inside or getattr(at.module, "added_kv_proj_dim", None) is not None


def _timm_tokens(at: _Attention) -> Site:
    """timm's ViT, DeiT, BEiT and EVA: class and register tokens, then the patches of `patch_embed`."""
    owner, module = at.owner("patch_embed"), at.module
    if not hasattr(owner, "num_prefix_tokens"):
        return at.keep("no patch embedding above it says what grid its tokens are")
    if not isinstance(getattr(owner, "patch_drop", None), (nn.Identity, type(None))):
        return at.keep("patch_drop leaves out tokens: what is left is no grid")
    embedding = owner.patch_embed
    if not hasattr(embedding, "feat_ratio"):
        return at.keep(f"its {type(embedding).__name__} does not say its patch size")
    dim = module.qkv.in_features if getattr(module, "qkv", None) is not None else module.proj.out_features
    site = at.site(dim, from_qkv(module, dim), owner.num_prefix_tokens)
    return at.on_grid(site, embedding, _timm_patch, getattr(embedding, "dynamic_img_pad", False))


def _timm_swin(at: _Attention) -> Site:
    dim = at.inner.qkv.in_features
    post_norm = at.kind == "SwinTransformerV2Block"
    return at.block(dim, from_qkv(at.inner, dim), Call("channels_last"), post_norm)


def _timm_pvt(at: _Attention) -> Site:
    dim, kv = at.module.dim, at.module.kv
    return at.site(dim, (last_rows(kv.weight, kv.bias, dim), weights_of(at.module.proj)), size="feat_size")


def _timm_map(at: _Attention) -> Site:
    """CoAtNet and its family: attention over a map."""
    dim, out = at.module.qkv.in_channels, at.module.proj.out_channels
    if dim != out:
        return at.keep(f"it turns {dim} channels into {out}")
    return at.site(dim, from_map_qkv(at.module, dim), layout="channels_first")


def _timm_partition(at: _Attention) -> Site:
    """MaxViT's blocks: windows, or a grid scattered over the map."""
    call = Call("channels_first" if isinstance(at.inner.qkv, nn.Conv2d) else "channels_last")
    dim = len(at.inner.proj.weight)
    return at.block(dim, from_map_qkv(at.inner, dim), call)


def _torchvision_multihead(at: _Attention) -> Site:
    """torchvision's ViT: a class token, then the patches of `conv_proj`."""
    owner, module = at.owner("conv_proj"), at.module
    if owner is None or not module.batch_first or module.in_proj_weight is None:
        return at.keep("it is not the self-attention of a torchvision VisionTransformer")
    value = last_rows(module.in_proj_weight, module.in_proj_bias, module.embed_dim)
    projections = value, weights_of(module.out_proj)
    site = at.site(module.embed_dim, projections, 1, self_attention=("key", "value"), returns_weights=True)
    return at.on_grid(site, owner.conv_proj, _stride)


def _torchvision_swin(at: _Attention) -> Site:
    dim = at.module.qkv.in_features
    site = at.site(dim, from_qkv(at.module, dim), layout="channels_last")
    site.dropout = at.module.dropout
    return site


def _transformers_tokens(at: _Attention) -> Site:
    """transformers' ViT and its family: class, distillation and register tokens, then `patch_embeddings`."""
    module = at.module
    if not all(hasattr(module, linear) for linear in ("q_proj", "v_proj", "o_proj")):
        return at.keep("this release of transformers builds it in a way ATConv does not know")
    owner = at.owner("embeddings")
    embeddings = getattr(owner, "embeddings", None)
    patches = getattr(embeddings, "patch_embeddings", None)
    if patches is None:
        return at.keep("no patch embedding above it says what grid its tokens are")
    prefix = (
        getattr(embeddings, token, None) for token in ("cls_token", "distillation_token", "register_tokens")
    )
    num_prefix_tokens = sum(token.shape[1] for token in prefix if token is not None)
    dim = module.q_proj.in_features
    projections = separate(module.v_proj, module.o_proj, dim)
    # Masks are checked where the model takes them.
    site = at.site(dim, projections, num_prefix_tokens, masks=(), returns_weights=True)
    site.hooks = ((owner, MaskCheck.before(owner)),)
    return at.on_grid(site, patches, _stride if isinstance(patches, nn.Conv2d) else _patch_size)


def _diffusers(at: _Attention) -> Site:
    """diffusers' Attention in DiT, PixArt, SD3 and the transformers of a UNet."""
    module = at.module
    if _is_joint(at):
        return at.keep("it mixes text and image tokens")
    if module.is_cross_attention:
        return at.keep("it is cross-attention")
    if type(next(at.above())).__name__ == "GatedSelfAttentionDense":
        return at.keep("it mixes image and grounding tokens")
    if module.rescale_output_factor != 1:
        return at.keep(f"it divides its output by {module.rescale_output_factor}")
    if module.residual_connection or module.group_norm is not None or module.spatial_norm is not None:
        return at.keep("it normalizes and adds inside, as a VAE's attention does")
    owner = at.owner("pos_embed")
    if any(kind.__name__ in _IMAGE_TRANSFORMERS for kind in type(owner).__mro__):
        embedding, patch = owner.pos_embed, _patch_size
    else:
        embedding, patch = at.owner("is_input_continuous"), _single_position
        if not getattr(embedding, "is_input_continuous", False):
            return at.keep("nothing above it says what grid its tokens are")
    projections = separate(module.to_v, module.to_out[0], module.query_dim)
    site = at.site(module.query_dim, projections, self_attention=("encoder_hidden_states",))
    return at.on_grid(site, embedding, patch)


# Listed as kept, as is any class called attention that is not a block which holds one.
_ATTENTION = ("GPSA", "MHSA", "XCA", "ParallelScalingBlock", "DiffParallelScalingBlock")

# Those of diffusers whose attention sees image tokens alone, or says so.
_IMAGE_TRANSFORMERS = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")

_FAMILIES: dict[str, Callable[[_Attention], Site]] = {
    "timm.layers.attention.Attention": _timm_tokens,
    "timm.layers.attention.AttentionRope": _timm_tokens,
    "timm.models.beit.Attention": _timm_tokens,
    "timm.models.eva.EvaAttention": _timm_tokens,
    "timm.models.vision_transformer_relpos.RelPosAttention": _timm_tokens,
    "timm.models.swin_transformer.SwinTransformerBlock": _timm_swin,
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": _timm_swin,
    "timm.models.pvt_v2.Attention": _timm_pvt,
    "timm.models.maxxvit.Attention2d": _timm_map,
    "timm.models.maxxvit.ParallelPartitionAttention": lambda at: at.keep("it joins two attentions"),
    "timm.models.maxxvit.PartitionAttention2d": _timm_partition,
    "timm.models.maxxvit.PartitionAttentionCl": _timm_partition,
    "torch.nn.modules.activation.MultiheadAttention": _torchvision_multihead,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _torchvision_swin,
    **{
        f"transformers.models.{folder}.modeling_{folder}.{kind}Attention": _transformers_tokens
        for folder, kind in {
            "vit": "ViT",
            "vit_msn": "ViTMSN",
            "deit": "DeiT",
            "beit": "Beit",
            "ijepa": "IJepa",
            "dinov2": "Dinov2",
            "dinov2_with_registers": "Dinov2WithRegisters",
            "dinov3_vit": "DINOv3ViT",
        }.items()
    },
    "diffusers.models.attention_processor.Attention": _diffusers,
}


# Pixels of a patch, by patch embedding; read at every pass, since some models can change it.


def _timm_patch(embedding: Any) -> Size:
    ratio = embedding.feat_ratio(as_scalar=False)  # with the stride of a convolutional trunk before it
    return int(ratio[0]), int(ratio[1])


def _stride(stem: nn.Module) -> Size:
    """Of a convolution, or of several in a row."""
    down = across = 1
    for layer in stem.modules():  # torch.compile takes no generator here
        if isinstance(layer, nn.Conv2d):
            down, across = down * layer.stride[0], across * layer.stride[1]
    return down, across


def _patch_size(embedding: Any) -> Size:
    patch = embedding.patch_size
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def _single_position(embedding: Any) -> Size:
    return 1, 1
