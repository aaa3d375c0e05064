"""When a layer's weights may be used without calling the layer."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["is_plain"]

_Layer = TypeVar("_Layer", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{hooks}" for hooks in _HOOKS)


def is_plain(layer: nn.Module, kind: type[_Layer]) -> TypeGuard[_Layer]:
    """Whether a layer is exactly a `kind`: not hooked, wrapped, replaced, sharded or quantized.

    LoRA, offload, quantization, FSDP and hooks act on calls of layers. A faster form that reads the weights
    of a layer gives the same result only where none of them is at work. Hooks of all modules,
    as `torch.nn.modules.module.register_module_forward_hook` sets them, count too.
    """
    return (
        type(layer) is kind
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and not any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS)
        and not any(is_traceable_wrapper_subclass(parameter) for parameter in layer.parameters())
    )
