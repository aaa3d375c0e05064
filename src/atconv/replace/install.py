"""Build the modules that replace attention, and put them into a model: all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from atconv.modules import ATConvTokens
from atconv.replace.adapters import ATConvAdapter
from atconv.replace.families import Site
from atconv.replace.place import Place

__all__ = ["build", "installed"]


@torch.no_grad()
def build(model: nn.Module, site: Site, kernel_size: Any, kernel_bias: bool = False) -> ATConvAdapter:
    """The module for a site, of the attention's device, dtype and mode.

    It takes over the attention's projections. Kernels start near 1/K² everywhere after inhibition, and leave
    that as the content teaches them. With `kernel_bias` each channel has a kernel of its own to start from.
    """
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd whole number, got {kernel_size!r}")
    assert site.make is not None
    old = model.get_submodule(site.name)
    like = next(old.parameters())
    mixer: Any = ATConvTokens(site.dim, kernel_size, site.num_prefix_tokens, kernel_bias=kernel_bias)
    mixer.to(like.device, like.dtype)
    nn.init.normal_(mixer.kernel_gen.weight, std=0.02)
    bias = mixer.kernel_bias if kernel_bias else mixer.kernel_gen.bias
    nn.init.constant_(bias, 2 / kernel_size**2)  # λ starts at 1/2, which leaves half of it
    if site.projections is not None:
        for layer, (weight, bias) in zip((mixer.value_proj, mixer.proj), site.projections, strict=True):
            layer.weight.copy_(weight)
            layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
    adapter = site.make(mixer)
    adapter.grid = site.grid
    if site.dropout:
        adapter.proj_drop = nn.Dropout(site.dropout)
    return adapter.train(old.training)


@contextmanager
def installed(model: nn.Module, sites: Sequence[Place], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put the modules at their sites, and take all of them out again if the body fails."""
    undo: list[Callable[[], None]] = []
    try:
        for site, module in zip(sites, modules, strict=True):
            undo += _put(model, model.get_submodule(site.name), module)
            for owner, hook in site.hooks:
                if hook not in owner._forward_pre_hooks.values():
                    undo.append(owner.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
    except BaseException:
        for step in undo:
            step()
        raise


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> list[Callable[[], None]]:
    """Put a module wherever the model holds another one. Returns what undoes it."""
    places = [
        (owner, attribute)
        for owner in model.modules()
        for attribute, child in owner._modules.items()
        if child is old
    ]
    for owner, attribute in places:
        setattr(owner, attribute, new)
    return [partial(setattr, owner, attribute, old) for owner, attribute in places]
