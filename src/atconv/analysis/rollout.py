"""Attention weights of a model and their rollout: attention from token to token through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from torch import Tensor, nn

from atconv.analysis.features import run_hooked

__all__ = ["collect_attention", "rollout"]


@torch.no_grad()
def collect_attention(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Attention weights of every global self-attention layer for a batch, by the layer's name.

    Works for any model that contains timm's `Attention` or `AttentionRope`, through hooks and in eval mode,
    and leaves it as it was. Attention within windows or to a smaller map is skipped: it has no N × N weights.

    Args:
        images: the model's input, batch first.

    Returns:
        B heads N N for each layer, rows of sum 1, in the order in which the layers ran.

    Raises:
        ValueError: the model has no such layer.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (Attention, AttentionRope))}
    if not layers:
        raise ValueError(
            "the model has no self-attention layer (timm's Attention): there are no weights to show"
        )
    weights: dict[str, Tensor] = {}

    def keep_weights(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rope = kwargs.get("rope", args[1] if len(args) > 1 else None)
            weights[name] = _weights(layer, args[0], rope if isinstance(layer, AttentionRope) else None)

        return hook

    handles = [m.register_forward_pre_hook(keep_weights(n), with_kwargs=True) for n, m in layers.items()]
    run_hooked(model, images, handles)
    return weights


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """How much each output token depends on each input token: B N N, rows of sum 1.

    Heads are averaged, and half of every layer is its residual.

    Args:
        weights: B heads N N for each layer, first to last.

    Raises:
        ValueError: no layers, or layers of different numbers of tokens.

    Source: attention rollout, arXiv 2005.00928.
    """
    if len({layer.shape[-1] for layer in weights}) != 1:
        raise ValueError("rollout takes the layers of one stack, with one number of tokens, and at least one")
    total = torch.eye(weights[0].shape[-1]).to(weights[0])
    for layer in weights:
        heads_mean = layer.mean(1)
        total = (heads_mean + torch.eye(heads_mean.shape[-1]).to(heads_mean)) / 2 @ total
    return total


def _weights(layer: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    batch, count, _ = x.shape
    heads = layer.num_heads
    if layer.qkv is not None:
        q, k, _ = layer.qkv(x).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        q = layer.q_proj(x).reshape(batch, count, heads, -1).transpose(1, 2)
        groups = heads // getattr(layer, "num_kv_heads", heads)  # query heads for each key head
        k = layer.k_proj(x).reshape(batch, count, heads // groups, -1).transpose(1, 2)
        k = k.repeat_interleave(groups, dim=1)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if rope is not None:
        prefix, half = layer.num_prefix_tokens, layer.rotate_half
        q, k = (
            torch.cat([part[:, :, :prefix], apply_rot_embed_cat(part[:, :, prefix:], rope, half=half)], 2)
            for part in (q, k)
        )
    return (q * layer.scale @ k.transpose(2, 3)).float().softmax(-1)
