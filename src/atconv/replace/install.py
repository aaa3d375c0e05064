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
from atconv.replace.families import Projections, Site

__all__ = ["build", "copy_projections", "installed"]


def build(model: nn.Module, site: Site, kernel_size: int) -> ATConvAdapter:
    """What goes into a place, newly initialized, of the attention's device, dtype and mode.

    Kernels start near 1/K² everywhere after inhibition, and leave that as the content teaches them.
    """
    assert site.make is not None
    old = model.get_submodule(site.name)
    mixer = ATConvTokens(site.dim, kernel_size, num_prefix_tokens=site.num_prefix_tokens)
    assert mixer.kernel_gen is not None
    nn.init.normal_(mixer.kernel_gen.weight, std=0.02)
    nn.init.constant_(mixer.kernel_gen.bias, 2 / kernel_size**2)  # λ starts at 1/2, which leaves half of it
    like = next(old.parameters())
    adapter = site.make(mixer.to(like.device, like.dtype))
    adapter.grid = site.grid
    if site.dropout:
        adapter.proj_drop = nn.Dropout(site.dropout)
    return adapter.train(old.training)


@torch.no_grad()
def copy_projections(adapter: ATConvAdapter, projections: Projections) -> None:
    """Take over value and output projection of the attention."""
    mixer: Any = adapter.mixer
    for layer, (weight, bias) in (
        (mixer.value_proj, projections.value),
        (mixer.proj, projections.output),
    ):
        layer.weight.copy_(weight)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)


@contextmanager
def installed(model: nn.Module, sites: Sequence[Site], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put the modules in their places, and take all of them out again if the body fails."""
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
