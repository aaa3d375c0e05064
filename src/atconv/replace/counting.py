"""Multiply-adds of a model and of its parts, counted by torch on tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["example_of", "macs"]

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-adds of one pass, by module; "" is the whole model.

    Convolutions, matrix products and attention are counted, as torch.utils.flop_counter does. Nothing is
    computed: the model's weights are only looked at.

    Args:
        model: any.
        example: its input: a tensor, positional or named arguments.
    """
    args: tuple[Any, ...] = example if isinstance(example, tuple) else ()
    named: Mapping[str, Any] = example if isinstance(example, Mapping) else {}
    if isinstance(example, Tensor):
        args = (example,)
    state = _state_without_data(model)
    # Fused attention is not counted by every release of torch.
    counting = FlopCounterMode(display=False)
    with _attributes_kept(model), sdpa_kernel(SDPBackend.MATH), counting as counter, torch.no_grad():
        torch.func.functional_call(model, state, _to_meta(args), _to_meta(dict(named)), tie_weights=False)
    prefix = f"{type(model).__name__}."
    counts = {name: sum(by_operator.values()) // 2 for name, by_operator in counter.get_flop_counts().items()}
    found = {name.removeprefix(prefix): count for name, count in counts.items()}
    return found | {"": counts["Global"]}


def _state_without_data(model: nn.Module) -> dict[str, Tensor]:
    """A tensor on meta for every parameter and buffer, once for a module that is in two places: torch's own
    way with ties would leave such a module with the tensors of the call."""
    return {
        f"{name}.{slot}" if name else slot: tensor.detach().to("meta")
        for name, module in model.named_modules()
        for slot, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Modules that cache what they computed, in attributes or in lists and dictionaries there, would be left
    with tensors without data."""
    kept = [
        (module, name, value, copy.copy(value) if type(value) in (list, dict, set) else None)
        for module in model.modules()
        for name, value in vars(module).items()
    ]
    names = {id(module): set(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module in model.modules():
            for name in set(vars(module)) - names[id(module)]:
                del vars(module)[name]
        for module, name, value, content in kept:
            vars(module)[name] = value
            if isinstance(content, list):
                value[:] = content
            elif content is not None:
                value.clear()
                value.update(content)


def example_of(model: Any) -> Tensor | None:
    """An image of the size that a timm, torchvision or transformers model says it was made for, else None."""
    size = _input_size(model)
    return None if size is None else torch.empty(1, *size, dtype=next(model.parameters()).dtype)


def _input_size(model: Any) -> tuple[int, int, int] | None:
    """Channels, height, width."""
    pretrained = getattr(model, "pretrained_cfg", None)
    if pretrained is not None:
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or pretrained["input_size"][1:]
        return getattr(model, "in_chans", 3), size[0], size[1]
    config: Any = getattr(model, "config", None)
    if hasattr(config, "image_size") and hasattr(config, "num_channels"):
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return config.num_channels, height, width
    kind = type(model).__module__
    if kind.startswith("torchvision.") and ".detection." not in kind:  # detectors take lists
        side = getattr(model, "image_size", 224)
        return 3, side, side
    return None


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: _to_meta(one) for name, one in value.items()}
    return type(value)(map(_to_meta, value)) if type(value) in (tuple, list) else value
