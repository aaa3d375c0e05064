"""Put ATConv in the place of self-attention inside a model that exists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from atconv.modules import ATConvTokens
from atconv.replace.counting import Example, example_of, multiply_adds
from atconv.replace.distill import DistillationReport, distill_blocks
from atconv.replace.families import Projections, Site, find_sites

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
    multiply_adds: tuple[int, int] | None
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
    multiply_adds: tuple[int, int] | None

    def __str__(self) -> str:
        whole = Replacement("whole model", "", self.parameters, self.multiply_adds, copied=True)
        unit, size = ("GMACs", 1e9) if max(self.multiply_adds or (0,)) >= 1e9 else ("MMACs", 1e6)
        rows = [("attention", "parameters", unit)]
        rows += [_row(one, size) for one in (*self.replaced, whole)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {counted:>{widths[2]}}".rstrip()
            for name, parameters, counted in rows
        ]
        if self.multiply_adds is None:
            lines.append("not run: give `example`, an input of the model, to try it and count multiply-adds")
        fresh = [one.name for one in self.replaced if not one.copied]
        if fresh:
            lines.append(f"value and output projections are fresh in {', '.join(fresh)}")
        lines += [f"left alone: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def _row(one: Replacement, size: float) -> tuple[str, str, str]:
    before, after = one.parameters
    counted = "" if one.multiply_adds is None else " → ".join(f"{n / size:.3f}" for n in one.multiply_adds)
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

    Value and output projections are taken over where their shapes allow, and kernels start as local
    averages, so that fine-tuning begins near the pretrained function. Cross-attention, and attention that
    mixes text with images, is left alone and said so. Where `where` asks for one that cannot be replaced,
    nothing is. Make optimizers and compile after the call.

    Args:
        model: timm's ViT, DeiT, BEiT, EVA, Swin, PVTv2, CoAtNet; torchvision's ViT and Swin; transformers'
            ViT, DeiT, BEiT, DINOv2, DINOv3 and their kin; diffusers' DiT, PixArt, SD3, UNet2DConditionModel.
        where: (name, module) → whether to replace it; all that can be by default.
        every: take only each n-th of those that can be replaced, the last of every n.
        blocks: take only these, counted from 0 among those that can be replaced, in order.
        kernel_size: odd side of ATConv's kernels.
        example: an input of the model (a tensor, positional or named arguments) to count multiply-adds for;
            by default an image of the size it was made for. diffusers' models take more than an image.

    Returns:
        what was replaced, and what was left alone and why.

    Raises:
        ValueError: there is no attention, none was chosen, a chosen one cannot be replaced, or the model
            does not take the example.
        TypeError: the example is no tensor, tuple or dictionary.
    """
    if not isinstance(example, (NoneType, Tensor, tuple, Mapping)):
        raise TypeError(
            "an example is a tensor, a tuple of positional arguments or a dictionary of named ones, "
            f"got a {type(example).__name__}"
        )
    sites = find_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no attention that could be replaced")
    chosen = _choose(model, sites, where, every, blocks)
    guessed, parameters, counted = example is None, _count(model), None
    if example is None:
        example = example_of(model)
    if example is not None:
        try:
            counted = multiply_adds(model, example)
        except Exception as error:  # whatever the model raises
            if not guessed:  # a model may be made for another size than it says
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(
                    f"nothing was replaced. {type(model).__name__} does not take the example: {reason}"
                ) from error
    made = [_make(model, site, kernel_size) for site in chosen]  # may fail: the model is still untouched
    old = {site.name: _count(model.get_submodule(site.name)) for site in chosen}
    undo = [_put(model, site, module) for site, module in zip(chosen, made, strict=True)]
    try:
        after = None if example is None or counted is None else multiply_adds(model, example)
    except Exception as error:
        for step in undo:
            step()
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"nothing was replaced. {type(model).__name__} does not run with ATConv in it: {reason}"
        ) from error
    for site in chosen:
        if site.hook is not None:  # the grid of the pass that counted is not that of a pass to come
            site.hook[1].grid.size = None
    rows = [
        Replacement(
            site.name,
            site.kind,
            (old[site.name], _count(module)),
            _pair(counted, after, site.name),
            site.projections is not None,
        )
        for site, module in zip(chosen, made, strict=True)
    ]
    kept = {site.name: site.reason or "not chosen" for site in sites if site not in chosen}
    return ReplacementReport(rows, kept, (parameters, _count(model)), _pair(counted, after, ""))


def _choose(
    model: nn.Module,
    sites: list[Site],
    where: Callable[[str, nn.Module], bool] | None,
    every: int,
    blocks: Collection[int] | None,
) -> list[Site]:
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    picked = [s for s in sites if where is None or where(s.name, model.get_submodule(s.name))]
    refused: dict[str, list[str]] = defaultdict(list)
    for site in picked:
        if site.make is None:
            refused[site.reason].append(site.name)
    if refused and (where is not None or all(site.make is None for site in picked)):
        told = "; ".join(
            f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}"
            for reason, names in refused.items()
        )
        raise ValueError(f"nothing was replaced. {told}")
    able = [site for site in picked if site.make is not None]
    if blocks is not None and not set(blocks) <= set(range(len(able))):
        raise ValueError(f"blocks must lie in 0…{len(able) - 1}, got {sorted(blocks)}")
    chosen = [
        site
        for number, site in enumerate(able)
        if (number + 1) % every == 0 and (blocks is None or number in blocks)
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
    if site.projections is not None:
        _copy(mixer, site.projections)
    return site.make(mixer.to(like.device, like.dtype)).train(old.training)


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
    pairs = ((mixer.value_proj, projections.value), (mixer.out_proj, projections.output))
    for layer, (weight, bias) in pairs:
        layer.weight.copy_(weight)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)


def _put(model: nn.Module, site: Site, module: nn.Module) -> Callable[[], None]:
    """Put the module in its place. Returns what takes it out again."""
    parent, _, attribute = site.name.rpartition(".")
    owner, old = model.get_submodule(parent), model.get_submodule(site.name)
    setattr(owner, attribute, module)
    handle = None
    if site.hook is not None:
        embedding, writer = site.hook
        if writer not in embedding._forward_pre_hooks.values():
            handle = embedding.register_forward_pre_hook(writer, with_kwargs=True)

    def undo() -> None:
        setattr(owner, attribute, old)
        if handle is not None:
            handle.remove()

    return undo


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pair(before: dict[str, int] | None, after: dict[str, int] | None, name: str) -> tuple[int, int] | None:
    return None if before is None or after is None else (before[name], after[name])
