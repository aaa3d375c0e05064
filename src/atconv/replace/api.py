"""`replace_attention`: choose attention of a model, replace it, and report what changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from torch import Tensor, nn

from atconv.replace.counting import Example, example_of, macs
from atconv.replace.families import Site, find_sites
from atconv.replace.install import build, installed
from atconv.replace.saving import record

__all__ = ["Replacement", "ReplacementReport", "replace_attention"]

Where = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replacement:
    """An attention that was replaced: what it was, and what it became."""

    name: str
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
    """attention that was not replaced, by name, and why"""
    parameters: tuple[int, int]
    """of the full model, before and after"""
    macs: tuple[int, int] | None

    def __str__(self) -> str:
        model = Replacement("full model", self.parameters, self.macs, copied=True)
        rows = [("attention", "parameters", "GMACs"), *map(_row, (*self.replaced, model))]
        name_width, parameters_width, macs_width = (
            max(map(len, column)) for column in zip(*rows, strict=True)
        )
        lines = [
            f"{name:<{name_width}}  {parameters:>{parameters_width}}  {count:>{macs_width}}".rstrip()
            for name, parameters, count in rows
        ]
        if self.macs is None:
            lines.append("not run: give `example`, an input of the model, to try it and count GMACs")
        new = [replacement.name for replacement in self.replaced if not replacement.copied]
        if new:
            lines.append(f"value and output projections are newly initialized in {', '.join(new)}")
        lines += [f"kept: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def _row(replacement: Replacement) -> tuple[str, str, str]:
    before, after = replacement.parameters
    counts = replacement.macs or ()
    return replacement.name, f"{before:,} → {after:,}", " → ".join(f"{count / 1e9:.3g}" for count in counts)


def replace_attention(
    model: nn.Module,
    where: Where | None = None,
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
    and attention that mixes text with images, is kept, and the report says so. Where `where` asks for one
    that cannot be replaced, nothing is. Make optimizers and compile after the call. The model's config holds
    what was replaced, so that `atconv.replace.from_pretrained` opens what the model's own library saves.

    Args:
        model: timm's ViT, DeiT, BEiT, EVA, Swin, PVTv2, CoAtNet, MaxViT; torchvision's ViT and Swin;
            transformers' ViT, DeiT, BEiT, DINOv2, DINOv3 and their family; diffusers' DiT, PixArt, SD3,
            UNet2DConditionModel.
        where: (name, module) → whether to replace it; all that can be by default.
        every: take only each n-th of those that can be replaced, the last of every n.
        blocks: take only these, counted from 0 among those that can be replaced, in order. `where` does not
            change what `every` and `blocks` count.
        kernel_size: odd size of ATConv's kernels.
        example: an input of the model (a tensor, positional or named arguments) to count multiply-adds for;
            by default an image of the size it was made for. diffusers' models take more than an image.

    Returns:
        what was replaced, and what was kept and why.

    Raises:
        ValueError: there is no attention, none was chosen, a chosen one cannot be replaced, or the model
            does not take the example.
        TypeError: an argument is of another kind.
    """
    _check_arguments(model, where, every, blocks, example)
    sites = find_sites(model)
    if not sites:
        raise ValueError(f"{type(model).__name__} has no attention that could be replaced")
    chosen = _choose(model, sites, where, every, blocks)
    if example is None:
        example, before = _count_image(model)
    else:
        fix = "; without `example`, it is replaced and not counted"
        before = _count(model, example, "does not take the example", fix)
    parameters = _parameters(model)
    sizes = [_parameters(model.get_submodule(site.name)) for site in chosen]
    adapters = [build(model, site, kernel_size) for site in chosen]  # may fail: the model is still untouched
    with installed(model, chosen, adapters):
        after = None if example is None else _count(model, example, "does not run with ATConv in it")
        replaced = [
            Replacement(
                site.name,
                (size, _parameters(adapter)),
                _macs(before, after, site.name),
                site.projections is not None,
            )
            for site, size, adapter in zip(chosen, sizes, adapters, strict=True)
        ]
        kept = {site.name: site.reason or "not chosen" for site in sites if site not in chosen}
        total = _macs(before, after, "")
        report = ReplacementReport(replaced, kept, (parameters, _parameters(model)), total)
        record(model)
        return report


def _check_arguments(model: Any, where: Any, every: Any, blocks: Any, example: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_attention takes a model, an nn.Module, got a {type(model).__name__}")
    if where is not None and not callable(where):
        raise TypeError(
            "where is a function of name and module, such as lambda name, module: name == 'blocks.0.attn', "
            f"got {where!r}"
        )
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


def _choose(
    model: nn.Module, sites: Sequence[Site], where: Where | None, every: int, blocks: Collection[int] | None
) -> list[Site]:
    wanted = [site for site in sites if where is None or where(site.name, model.get_submodule(site.name))]
    rejected: dict[str, list[str]] = defaultdict(list)
    for site in wanted:
        if site.make is None:
            rejected[site.reason].append(site.name or type(model).__name__)
    if rejected and (where is not None or all(site.make is None for site in wanted)):
        reasons = "; ".join(f"{_some(names)}: {reason}" for reason, names in rejected.items())
        fix = "" if where is None else "; let `where` pass over such"
        raise ValueError(f"nothing was replaced. {reasons}{fix}")
    replaceable = [site for site in sites if site.make is not None]
    if blocks is not None and not set(blocks) <= set(range(len(replaceable))):
        raise ValueError(f"blocks must lie in 0…{len(replaceable) - 1}, got {sorted(blocks)}")
    chosen = [
        site
        for number, site in enumerate(replaceable)
        if site in wanted and (number + 1) % every == 0 and (blocks is None or number in blocks)
    ]
    if not chosen:
        names = ", ".join(site.name for site in sites[:3])
        raise ValueError(f"none of the {len(sites)} attentions was chosen: {names}, …")
    return chosen


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _count_image(model: nn.Module) -> tuple[Example | None, dict[str, int] | None]:
    """An image that the model says it was made for, and multiply-adds by module for it; None without one."""
    example = example_of(model)
    try:
        return example, None if example is None else macs(model, example)
    except Exception:  # a model may be made for another size than it says
        return None, None


def _count(model: nn.Module, example: Example, problem: str, fix: str = "") -> dict[str, int]:
    try:
        return macs(model, example)
    except Exception as error:  # whatever the model raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"nothing was replaced. {type(model).__name__} {problem}: {reason}{fix}") from error


def _macs(before: dict[str, int] | None, after: dict[str, int] | None, name: str) -> tuple[int, int] | None:
    """Of a module; 0 where it did not run."""
    return None if before is None or after is None else (before.get(name, 0), after.get(name, 0))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
