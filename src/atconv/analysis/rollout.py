"""Attention weights of a model, and their rollout: what a token takes from each through all layers."""

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
    """The weights of every global self-attention layer for a batch, by the layer's name.

    Works for any model that contains timm's `Attention` or `AttentionRope`, through hooks and in eval mode,
    and leaves it as it was. Attention within windows or to a smaller map is left out: it has no N × N
    weights.

    Args:
        images: the model's input, batch first.

    Returns:
        B heads N N for each layer, rows of sum 1, in the order they ran.

    Raises:
        ValueError: the model has no such layer.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (Attention, AttentionRope))}
    if not layers:
        raise ValueError(
            "the model has no self-attention layer (timm's Attention): there are no weights to show"
        )
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
            rope = options.get("rope", given[1] if len(given) > 1 else None)
            found[name] = _weights(layer, given[0], rope if isinstance(layer, AttentionRope) else None)

        return hook

    handles = [layer.register_forward_pre_hook(keep(n), with_kwargs=True) for n, layer in layers.items()]
    run_hooked(model, images, handles)
    return found


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """What each token of the last layer takes from each token of the first: B N N, rows of sum 1.

    The heads are averaged, and half of every layer is its residual.

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
        mixed = layer.mean(1)
        total = (mixed + torch.eye(mixed.shape[-1]).to(mixed)) / 2 @ total
    return total


def _weights(layer: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    batch, count, _ = x.shape
    heads = layer.num_heads
    if layer.qkv is not None:
        q, k, _ = layer.qkv(x).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        q = layer.q_proj(x).reshape(batch, count, heads, -1).transpose(1, 2)
        shared = heads // getattr(layer, "num_kv_heads", heads)  # queries to a key
        k = layer.k_proj(x).reshape(batch, count, heads // shared, -1).transpose(1, 2)
        k = k.repeat_interleave(shared, dim=1)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if rope is not None:
        first, half = layer.num_prefix_tokens, layer.rotate_half
        q, k = (
            torch.cat([part[:, :, :first], apply_rot_embed_cat(part[:, :, first:], rope, half=half)], 2)
            for part in (q, k)
        )
    return (q * layer.scale @ k.transpose(2, 3)).float().softmax(-1)
