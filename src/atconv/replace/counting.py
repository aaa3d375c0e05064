"""Multiply-adds of a model and of its parts, counted by torch on tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Example", "arguments_of", "example_of", "macs"]

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-adds of one pass, by module; "" is the full model.

    Convolutions, matrix products and attention are counted, as torch.utils.flop_counter does. Nothing is
    computed, and the model is not touched: a copy of it without data runs.

    Args:
        model: any.
        example: its input: a tensor, positional or named arguments.

    Raises:
        TypeError: the model holds what cannot be copied, such as a lock or an open file.
    """
    args, kwargs = arguments_of(example)
    # The memo holds parameters already, since their own way of copying clones the data.
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    try:
        with _CopiesOnMeta():
            twin, twin_args, twin_kwargs = copy.deepcopy((model, args, kwargs), memo)
    except Exception as error:  # whatever its parts raise
        raise TypeError(f"{type(model).__name__} cannot be copied to count without data: {error}") from error
    # Fused attention is not counted by every release of torch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*twin_args, **twin_kwargs)
    prefix = f"{type(model).__name__}."
    counts = {
        name.removeprefix(prefix): sum(by_operator.values()) // 2
        for name, by_operator in counter.get_flop_counts().items()
    }
    return counts | {"": counts["Global"]}


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


class _CopiesOnMeta(TorchFunctionMode):
    """Deep copies of tensors have no data; those that a graph holds can be copied too."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **kwargs or {})
        tensor, memo = args
        with torch.no_grad():
            return memo.setdefault(id(tensor), tensor.detach().to("meta"))


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
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.num_channels, height, width
    kind = type(model).__module__
    if kind.startswith("torchvision.") and ".detection." not in kind:  # detectors take lists
        size = getattr(model, "image_size", 224)
        return 3, size, size
    return None
