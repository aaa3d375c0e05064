"""Put ATConv in the place of self-attention inside a model that exists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from atconv.modules import ATConvTokens
from atconv.replace.counting import Example, example_of, macs
from atconv.replace.distill import DistillationReport, distill_blocks
from atconv.replace.families import Projections, Site, find_sites
from atconv.replace.layers import GridWriter

__all__ = [
    "DistillationReport",
    "Replacement",
    "ReplacementReport",
    "distill_blocks",
    "replace_attention",
]


@dataclass(frozen=True)
class Replacement:
    """One attention: what it was, and what became of it."""

    name: str
    kind: str
    parameters: tuple[int, int]
    """before and after"""
    macs: tuple[int, int] | None
    """before and after; None where the model's input is not known"""
    copied: bool
    """value and output projection were taken over"""


@dataclass(frozen=True)
class ReplacementReport:
    """What `replace_attention` did. Printed, it is a table."""

    replaced: list[Replacement]
    kept: dict[str, str]
    """attention that was left alone, by name, and why"""
    parameters: tuple[int, int]
    """of the whole model, before and after"""
    macs: tuple[int, int] | None

    def __str__(self) -> str:
        whole = Replacement("whole model", "", self.parameters, self.macs, copied=True)
        unit, size = ("GMACs", 1e9) if max(self.macs or (0,)) >= 1e9 else ("MMACs", 1e6)
        rows = [("attention", "parameters", unit)]
        rows += [_row(one, size) for one in (*self.replaced, whole)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {counted:>{widths[2]}}".rstrip()
            for name, parameters, counted in rows
        ]
        if self.macs is None:
            lines.append("not run: give `example`, an input of the model, to try it and count multiply-adds")
        fresh = [one.name for one in self.replaced if not one.copied]
        if fresh:
            lines.append(f"value and output projections are fresh in {', '.join(fresh)}")
        lines += [f"left alone: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def _row(one: Replacement, size: float) -> tuple[str, str, str]:
    before, after = one.parameters
    counted = "" if one.macs is None else " → ".join(f"{n / size:.3f}" for n in one.macs)
    return one.name, f"{before:,} → {after:,}", counted


def replace_attention(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | None = None,
    every: int = 1,
    blocks: Collection[int] | None = None,
    kernel_size: int = 3,
    example: Example | None = None,
) -> ReplacementReport:
    """Replace the self-attention of a model by ATConv, in place.

    >>> vit = timm.create_model("deit_small_patch16_224", pretrained=True)
    >>> print(atconv.replace_attention(vit))

    Value and output projections are taken over where their shapes allow, and kernels start near local
    averages. What the attention routed is lost until it is learned: fine-tune the model. Cross-attention,
    and attention that mixes text with images, is left alone and said so. Where `where` asks for one that
    cannot be replaced, nothing is. Make optimizers and compile after the call.

    Args:
        model: timm's ViT, DeiT, BEiT, EVA, Swin, PVTv2, CoAtNet, MaxViT; torchvision's ViT and Swin;
            transformers' ViT, DeiT, BEiT, DINOv2, DINOv3 and their kin; diffusers' DiT, PixArt, SD3,
            UNet2DConditionModel.
        where: (name, module) → whether to replace it; all that can be by default.
        every: take only each n-th of those that can be replaced, the last of every n.
        blocks: take only these, counted from 0 among those that can be replaced, in order. `where` does not
            change what `every` and `blocks` count.
        kernel_size: odd side of ATConv's kernels.
        example: an input of the model (a tensor, positional or named arguments) to count multiply-adds for;
            by default an image of the size it was made for. diffusers' models take more than an image.

    Returns:
        what was replaced, and what was left alone and why.

    Raises:
        ValueError: there is no attention, none was chosen, a chosen one cannot be replaced, or the model
            does not take the example.
        TypeError: an argument is of another kind.
    """
    _check_arguments(model, where, every, blocks, kernel_size, example)
    sites = find_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no attention that could be replaced")
    chosen = _choose(model, sites, where, every, blocks)
    example, before = _count_before(model, example)
    parameters = _parameters(model)
    old = [_parameters(model.get_submodule(site.name)) for site in chosen]
    made = [_make(model, site, kernel_size) for site in chosen]  # may fail: the model is still untouched
    with _in_place(model, chosen, made):
        after = None if example is None or before is None else _count_after(model, example)
        rows = [
            Replacement(
                site.name,
                site.kind,
                (size, _parameters(module)),
                _pair(before, after, site.name),
                site.projections is not None,
            )
            for site, size, module in zip(chosen, old, made, strict=True)
        ]
        kept = {site.name: site.reason or "not chosen" for site in sites if site not in chosen}
        return ReplacementReport(rows, kept, (parameters, _parameters(model)), _pair(before, after, ""))


def _check_arguments(model: Any, where: Any, every: Any, blocks: Any, kernel_size: Any, example: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_attention takes a model, an nn.Module, got a {type(model).__name__}")
    if where is not None and not callable(where):
        raise TypeError(
            "where is a function of name and module, such as lambda name, module: name == 'blocks.0.attn', "
            f"got {where!r}"
        )
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd whole number, got {kernel_size!r}")
    if type(every) is not int or every < 1:
        raise ValueError(f"every must be at least 1, a whole number, got {every!r}")
    numbers = isinstance(blocks, Collection) and all(type(number) is int for number in blocks)
    if blocks is not None and not numbers:
        raise TypeError(f"blocks is a list of whole numbers, such as [0, 1], got {blocks!r}")
    if not isinstance(example, (NoneType, Tensor, tuple, Mapping)):
        raise TypeError(
            "an example is a tensor, a tuple of positional arguments or a dictionary of named ones, "
            f"got a {type(example).__name__}"
        )


def _count_before(model: nn.Module, example: Example | None) -> tuple[Example | None, dict[str, int] | None]:
    """The example, or an image that the model says it was made for, and multiply-adds by module for it."""
    taken = example_of(model) if example is None else example
    if taken is None:
        return None, None
    try:
        return taken, macs(model, taken)
    except Exception as error:  # whatever the model raises
        if example is None:  # a model may be made for another size than it says
            return None, None
        raise ValueError(
            f"nothing was replaced. {type(model).__name__} does not take the example: {_first_line(error)}"
        ) from error


def _count_after(model: nn.Module, example: Example) -> dict[str, int]:
    try:
        return macs(model, example)
    except Exception as error:
        told = f"{type(model).__name__} does not run with ATConv in it: {_first_line(error)}"
        raise ValueError(f"nothing was replaced. {told}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _choose(
    model: nn.Module,
    sites: list[Site],
    where: Callable[[str, nn.Module], bool] | None,
    every: int,
    blocks: Collection[int] | None,
) -> list[Site]:
    picked = [s for s in sites if where is None or where(s.name, model.get_submodule(s.name))]
    refused: dict[str, list[str]] = defaultdict(list)
    for site in picked:
        if site.make is None:
            refused[site.reason].append(site.name or type(model).__name__)
    if refused and (where is not None or all(site.make is None for site in picked)):
        told = "; ".join(
            f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}"
            for reason, names in refused.items()
        )
        mended = "" if where is None else "; let `where` pass over such"
        raise ValueError(f"nothing was replaced. {told}{mended}")
    able = [site for site in sites if site.make is not None]
    if blocks is not None and not set(blocks) <= set(range(len(able))):
        raise ValueError(f"blocks must lie in 0…{len(able) - 1}, got {sorted(blocks)}")
    chosen = [
        site
        for number, site in enumerate(able)
        if site in picked and (number + 1) % every == 0 and (blocks is None or number in blocks)
    ]
    if not chosen:
        names = ", ".join(site.name for site in sites[:3])
        raise ValueError(f"none of the {len(sites)} attentions was chosen: {names}, …")
    return chosen


def _make(model: nn.Module, site: Site, kernel_size: int) -> nn.Module:
    assert site.make is not None
    old = model.get_submodule(site.name)
    like = next(old.parameters())
    mixer = ATConvTokens(site.dim, kernel_size)
    _start_as_average(mixer)
    mixer.to(like.device, like.dtype)
    if site.projections is not None:
        _copy(mixer, site.projections)
    made = site.make(mixer)
    if site.dropout:
        made.proj_drop = nn.Dropout(site.dropout)
    return made.train(old.training)


@torch.no_grad()
def _start_as_average(mixer: ATConvTokens) -> None:
    """Kernels start near 1/K² everywhere after inhibition, and leave that as the content tells them to."""
    assert mixer.kernel_gen is not None
    assert mixer.alpha is not None
    kept = 1 - float(torch.sigmoid(mixer.alpha[0]))
    nn.init.normal_(mixer.kernel_gen.weight, std=0.02)
    nn.init.constant_(mixer.kernel_gen.bias, 1 / (mixer.kernel_size**2 * kept))


@torch.no_grad()
def _copy(mixer: Any, projections: Projections) -> None:
    pairs = ((mixer.value_proj, projections.value), (mixer.proj, projections.output))
    for layer, (weight, bias) in pairs:
        layer.weight.copy_(weight)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)


@contextmanager
def _in_place(model: nn.Module, sites: Sequence[Site], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put the modules in their places, and take all of them out again if the body fails."""
    undo: list[Callable[[], None]] = []
    try:
        for site, module in zip(sites, modules, strict=True):
            undo += _put(model, model.get_submodule(site.name), module)
            for where, hook in site.hooks:
                if hook not in where._forward_pre_hooks.values():
                    undo.append(hook.register(where))
        yield
    except BaseException:
        for step in undo:
            step()
        raise
    for site in sites:
        for _, hook in site.hooks:
            if isinstance(hook, GridWriter):  # the pass that counted is not the one to come
                hook.grid.size = None


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


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pair(before: dict[str, int] | None, after: dict[str, int] | None, name: str) -> tuple[int, int] | None:
    """Of a module; 0 where it did not run."""
    return None if before is None or after is None else (before.get(name, 0), after.get(name, 0))
