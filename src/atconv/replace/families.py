"""Where attention sits in the models people use, and what it takes to put ATConv there.

A family is known by the names of its classes, so that none of the libraries is imported here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atconv.modules import ATConvTokens
from atconv.replace.layers import (
    ATConvAttention,
    ATConvBlock,
    ATConvDiffusersAttention,
    ATConvLastAttention,
    ATConvMapAttention,
    ATConvMultiheadAttention,
    ATConvReplacement,
    ATConvSizedAttention,
    ATConvTransformersAttention,
    GridWriter,
    MaskRefusal,
    Size,
)

__all__ = ["Projections", "Site", "find_sites"]

Weights = tuple[Tensor, "Tensor | None"]
Hook = tuple[nn.Module, "GridWriter | MaskRefusal"]


@dataclass(frozen=True)
class Projections:
    """Value and output projection of an attention, C C and C each, as ATConv has them too."""

    value: Weights
    output: Weights


@dataclass(eq=False)
class Site:
    """One attention of a model: replaced by `make`, or left alone for a reason."""

    name: str
    """of the module that is replaced, as in model.named_modules()"""
    kind: str
    dim: int = 0
    make: Callable[[ATConvTokens], nn.Module] | None = None
    projections: Projections | None = None
    hooks: tuple[Hook, ...] = ()
    """the patch embedding, and what writes the grid there; what refuses masks"""
    reason: str = ""
    """why it cannot be replaced"""
    dropout: float = 0.0
    """behind the output projection"""


def find_sites(model: nn.Module) -> list[Site]:
    """Every attention of a model, in order of its modules. Those inside a replaced block are not listed."""
    writers: dict[int, tuple[nn.Module, GridWriter]] = {}
    sites = []
    covered: list[str] = []
    for name, module in model.named_modules():
        if any(not outer or name.startswith(f"{outer}.") for outer in covered):
            continue
        site = _site(model, name, module, writers)
        if site is not None and not name:
            site = Site(name, site.kind, reason="it is the whole model: give the model that holds it")
        if site is not None:
            sites.append(site)
            covered.append(name)
    return sites


def _site(
    model: nn.Module, name: str, module: Any, writers: dict[int, tuple[nn.Module, GridWriter]]
) -> Site | None:
    called = type(module).__name__
    if isinstance(module, ATConvReplacement):
        return Site(name, called, reason="it is ATConv already")
    finder = _finder(module)
    if finder is not None:
        reason = _unknown_projection(getattr(module, "attn", module))
        if reason:
            return Site(name, called, reason=reason)
        site = finder(model, name, module, writers)
        site.dropout = site.dropout or _output_dropout(getattr(module, "attn", module))
        return site
    named = (re.search("Att(entio)?n", called) and "Block" not in called) or called in _ATTENTION
    if named and not any(_finder(inner) for inner in module.modules()):  # a model may be named after it too
        joint = "it mixes text and image tokens" if _is_joint(model, name, module) else ""
        return Site(name, called, reason=joint or "this attention is not one that ATConv knows")
    return None


def _unknown_projection(attention: Any) -> str:
    """Why value and output cannot be read from its layers: adapters or quantized ones; "" where they can."""
    for name in ("qkv", "kv", "v_proj", "proj", "o_proj", "out_proj", "to_v", "to_out"):
        layer = getattr(attention, name, None)
        layer = layer[0] if isinstance(layer, nn.ModuleList) else layer
        if layer is not None and not isinstance(layer, (nn.Linear, nn.Conv2d)):
            kind = type(layer).__name__
            return f"its {name} is a {kind}: merge adapters, and quantize after attention is replaced"
    return ""


def _output_dropout(attention: Any) -> float:
    """Of timm's proj_drop, or the second layer of diffusers' to_out."""
    layers = (getattr(attention, "proj_drop", None), *list(getattr(attention, "to_out", []))[1:2])
    return next((layer.p for layer in layers if isinstance(layer, nn.Dropout)), 0.0)


def _is_joint(model: nn.Module, name: str, module: Any) -> bool:
    """Whether text and image tokens attend to each other in it, in one of diffusers' models."""
    mixing = ("SingleTransformerBlock", "CogVideoXBlock")  # tokens come to it as one sequence
    one = any(kind in type(above).__name__ for kind in mixing for above in _above(model, name))
    return one or getattr(module, "added_kv_proj_dim", None) is not None


def _finder(module: nn.Module) -> Finder | None:
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), None)


def _timm_tokens(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """timm's ViT, DeiT, BEiT and EVA: class and register tokens, then the patches of `patch_embed`."""
    kind = type(module).__name__
    owner: Any = _owner(model, name, "patch_embed")
    if owner is None or not hasattr(owner, "num_prefix_tokens"):
        return Site(name, kind, reason="no patch embedding above it says what grid its tokens are")
    drop = getattr(owner, "patch_drop", None)
    if drop is not None and not isinstance(drop, nn.Identity):
        return Site(name, kind, reason="patch_drop leaves out tokens: what is left is no grid")
    embedding = owner.patch_embed
    if not hasattr(embedding, "feat_ratio"):
        return Site(name, kind, reason=f"its {type(embedding).__name__} does not say its patch size")
    dim = module.qkv.in_features if getattr(module, "qkv", None) is not None else module.proj.out_features
    hook = _writer(embedding, writers, _timm_patch, getattr(embedding, "dynamic_img_pad", False))
    prefix, further = owner.num_prefix_tokens, tuple(inspect.signature(module.forward).parameters)[1:]
    return Site(
        name,
        kind,
        dim,
        lambda mixer: ATConvAttention(mixer, hook[1].grid, prefix, further),
        _thirds(module, dim),
        (hook,),
    )


def _timm_swin(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    kind, dim = type(module).__name__, module.attn.qkv.in_features
    post_norm = kind == "SwinTransformerV2Block"
    return Site(
        name, kind, dim, lambda mixer: ATConvBlock(module, mixer, post_norm), _thirds(module.attn, dim)
    )


def _timm_pvt(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    weight, bias = module.kv.weight, module.kv.bias
    value = (weight[module.dim :], None if bias is None else bias[module.dim :])
    projections = Projections(value, (module.proj.weight, module.proj.bias))
    return Site(name, "PVTv2 Attention", module.dim, ATConvSizedAttention, projections)


def _timm_map(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """CoAtNet and its kin: attention over a map, heads before or after the thirds of qkv."""
    dim, out = module.qkv.in_channels, module.proj.out_channels
    if dim != out:
        return Site(name, "Attention2d", reason=f"it turns {dim} channels into {out}")
    return Site(name, "Attention2d", dim, ATConvMapAttention, _map_projections(module, dim))


def _timm_partition(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """MaxViT's blocks: windows, or a grid strewn over the map."""
    first = isinstance(module.attn.qkv, nn.Conv2d)
    dim = len(module.attn.proj.weight)
    return Site(
        name,
        "PartitionAttention",
        dim,
        lambda mixer: ATConvBlock(module, mixer, channels_first=first),
        _map_projections(module.attn, dim),
    )


def _timm_parallel_partition(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    return Site(name, "ParallelPartitionAttention", reason="it is two attentions whose outputs are joined")


def _torchvision_multihead(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """torchvision's ViT: a class token, then the patches of `conv_proj`."""
    kind, dim = "MultiheadAttention", module.embed_dim
    owner: Any = _owner(model, name, "conv_proj")
    if owner is None or not module.batch_first or module.in_proj_weight is None:
        return Site(name, kind, reason="it is not the self-attention of a torchvision VisionTransformer")
    hook = _writer(owner.conv_proj, writers, _stride, padded=False)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    value = (weight[2 * dim :], None if bias is None else bias[2 * dim :])
    projections = Projections(value, (module.out_proj.weight, module.out_proj.bias))
    further = tuple(inspect.signature(module.forward).parameters)[3:]
    return Site(
        name,
        kind,
        dim,
        lambda mixer: ATConvMultiheadAttention(mixer, hook[1].grid, 1, further),
        projections,
        (hook,),
    )


def _torchvision_swin(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    dim = module.qkv.in_features
    kind = type(module).__name__
    return Site(name, kind, dim, ATConvLastAttention, _thirds(module, dim), dropout=module.dropout)


def _transformers_tokens(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """transformers' ViT and its kin: class, distillation and register tokens, then `patch_embeddings`."""
    kind = type(module).__name__
    if not all(hasattr(module, linear) for linear in ("q_proj", "v_proj", "o_proj")):
        return Site(name, kind, reason="this release of transformers builds it in a way ATConv does not know")
    dim = module.q_proj.in_features
    owner: Any = _owner(model, name, "embeddings")
    embeddings: Any = getattr(owner, "embeddings", None)
    patches = getattr(embeddings, "patch_embeddings", None)
    if patches is None:
        return Site(name, kind, reason="no patch embedding above it says what grid its tokens are")
    given = [
        getattr(embeddings, token, None) for token in ("cls_token", "distillation_token", "register_tokens")
    ]
    prefix = sum(token.shape[1] for token in given if token is not None)
    patch = _stride if isinstance(patches, nn.Conv2d) else _patch_size
    hook = _writer(patches, writers, patch, padded=False)
    return Site(
        name,
        kind,
        dim,
        lambda mixer: ATConvTransformersAttention(mixer, hook[1].grid, prefix),
        _separate(module.v_proj, module.o_proj, dim),
        (hook, (owner, MaskRefusal.before(owner))),
    )


def _diffusers(model: nn.Module, name: str, module: Any, writers: dict[int, Any]) -> Site:
    """diffusers' Attention in DiT, PixArt, SD3 and the transformers of a UNet."""
    kind, dim = "diffusers Attention", module.query_dim
    if _is_joint(model, name, module):
        return Site(name, kind, reason="it mixes text and image tokens")
    if module.is_cross_attention:
        return Site(name, kind, reason="it is cross-attention")
    if type(next(_above(model, name))).__name__ == "GatedSelfAttentionDense":
        return Site(name, kind, reason="it mixes image and grounding tokens")
    if module.rescale_output_factor != 1:
        return Site(name, kind, reason=f"it divides its output by {module.rescale_output_factor}")
    if module.residual_connection or module.group_norm is not None or module.spatial_norm is not None:
        return Site(name, kind, reason="it normalizes and adds inside, as a VAE's attention does")
    owner: Any = _owner(model, name, "pos_embed")
    if owner is not None and any(kind.__name__ in _IMAGE_TRANSFORMERS for kind in type(owner).__mro__):
        hook = _writer(owner.pos_embed, writers, _patch_size, padded=False)
    else:
        owner = next((m for m in _above(model, name) if getattr(m, "is_input_continuous", False)), None)
        if owner is None:
            return Site(name, kind, reason="nothing above it says what grid its tokens are")
        hook = _writer(owner, writers, _one, padded=False)
    return Site(
        name,
        kind,
        dim,
        lambda mixer: ATConvDiffusersAttention(mixer, hook[1].grid, 0),
        _separate(module.to_v, module.to_out[0], dim),
        (hook,),
    )


# Told as left alone beside whatever is called attention and is not a block that holds one.
_ATTENTION = ("GPSA", "MHSA", "XCA", "ParallelScalingBlock", "DiffParallelScalingBlock")

# Those of diffusers whose attention sees image tokens alone, or says so.
_IMAGE_TRANSFORMERS = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")

Finder = Callable[[nn.Module, str, Any, "dict[int, Any]"], Site]

_FAMILIES: dict[str, Finder] = {
    "timm.layers.attention.Attention": _timm_tokens,
    "timm.layers.attention.AttentionRope": _timm_tokens,
    "timm.models.beit.Attention": _timm_tokens,
    "timm.models.eva.EvaAttention": _timm_tokens,
    "timm.models.vision_transformer_relpos.RelPosAttention": _timm_tokens,
    "timm.models.swin_transformer.SwinTransformerBlock": _timm_swin,
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": _timm_swin,
    "timm.models.pvt_v2.Attention": _timm_pvt,
    "timm.models.maxxvit.Attention2d": _timm_map,
    "timm.models.maxxvit.ParallelPartitionAttention": _timm_parallel_partition,
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


def _owner(model: nn.Module, name: str, attribute: str) -> nn.Module | None:
    """The nearest module above `name` that has the attribute."""
    return next((m for m in _above(model, name) if getattr(m, attribute, None) is not None), None)


def _above(model: nn.Module, name: str) -> Iterator[nn.Module]:
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        yield model.get_submodule(".".join(parts[:length]))


def _writer(
    embedding: nn.Module, writers: dict[int, Any], patch: Callable[[Any], Size], padded: bool
) -> tuple[nn.Module, GridWriter]:
    """One for each patch embedding."""
    if id(embedding) not in writers:
        writers[id(embedding)] = (embedding, GridWriter.before(embedding, patch, padded))
    return writers[id(embedding)]


# Pixels of a patch, by patch embedding; read at every pass, since some models can be given another.


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


def _one(embedding: Any) -> Size:
    return 1, 1


def _thirds(module: Any, dim: int) -> Projections | None:
    """Of a qkv projection whose last third makes the values; None where the shapes are others, or where a
    norm or a gate lies between values and output."""
    between = (getattr(module, name, None) for name in ("norm", "gate"))
    if any(layer is not None and not isinstance(layer, nn.Identity) for layer in between):
        return None
    if getattr(module, "qkv", None) is None:
        return _separate(module.v_proj, module.proj, dim)
    weight, bias = module.qkv.weight, module.qkv.bias
    if weight.shape != (3 * dim, dim) or module.proj.weight.shape != (dim, dim):
        return None
    value_bias = bias[2 * dim :] if bias is not None else getattr(module, "v_bias", None)
    return Projections((weight[2 * dim :], value_bias), (module.proj.weight, module.proj.bias))


def _separate(value: Any, output: Any, dim: int) -> Projections | None:
    """Of two linear layers; None where the attention is wider or narrower inside."""
    if value.weight.shape != (dim, dim) or output.weight.shape != (dim, dim):
        return None
    return Projections((value.weight, value.bias), (output.weight, output.bias))


def _map_projections(module: Any, dim: int) -> Projections | None:
    """Of 1×1 convolutions; with heads first, each head holds its query, key and value side by side."""
    weight, bias = module.qkv.weight.flatten(1), module.qkv.bias
    if weight.shape != (3 * dim, dim):
        return None
    heads = module.num_heads
    layout = (heads, 3, -1) if module.head_first else (3, heads, -1)
    axis = 1 if module.head_first else 0
    value = weight.unflatten(0, layout).select(axis, 2).flatten(0, 1)
    value_bias = None if bias is None else bias.unflatten(0, layout).select(axis, 2).flatten()
    return Projections((value, value_bias), (module.proj.weight.flatten(1), module.proj.bias))
