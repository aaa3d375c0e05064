"""Choose parts of a model, put others in their place, and report what changed: the same for every kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar

from torch import Tensor, nn

from atconv.replace.counting import Example, example_of, macs
from atconv.replace.install import installed
from atconv.replace.place import Place

__all__ = [
    "Replacement",
    "ReplacementReport",
    "Where",
    "check_arguments",
    "choose",
    "nothing_replaced",
    "swap",
]

Where = Callable[[str, nn.Module], bool]
AnyPlace = TypeVar("AnyPlace", bound=Place)


@dataclass(frozen=True)
class Replacement:
    """An attention or convolution that was replaced: what it was, and what it became."""

    name: str
    parameters: tuple[int, int]
    """before and after"""
    macs: tuple[int, int] | None
    """before and after; None where the model's input is not known"""
    copied: bool
    """its weights were taken over: the projections of an attention, the kernel of a convolution"""
    explained: float | None = None
    """where ATConv starts from what an attention answered: the share of that, before the output projection,
    that it answers too, as squares of single positions, of their mean and of class and register tokens, the
    latter two times the square of the number of positions; of a convolution, the share of the squares of its
    weights; 0 where it is no nearer than zeros; None where that is not known"""
    averages: float | None = None
    """the same share for local averages, near which ATConv starts without `start`"""
    exact: bool = False
    """ATConv answers the same, where it starts from an attention on these inputs, on every token"""
    determined: bool = True
    """these inputs have as many positions as a kernel has weights; with fewer, kernels fit anything"""


@dataclass(frozen=True)
class ReplacementReport:
    """What `replace_attention` or `replace_convolution` did. Printed, it is a table."""

    replaced: list[Replacement]
    kept: dict[str, str]
    """what was not replaced, by name, and why"""
    parameters: tuple[int, int]
    """of the full model, before and after"""
    macs: tuple[int, int] | None
    note: str
    """before the names of those whose weights were not taken over"""

    def __str__(self) -> str:
        model = Replacement("full model", self.parameters, self.macs, copied=True)
        started = any(replacement.explained is not None for replacement in self.replaced)
        averages = any(replacement.averages is not None for replacement in self.replaced)
        rows = [("replaced", "parameters", "GMACs", "start" * started, "averages" * averages)]
        rows += map(_row, (*self.replaced, model))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        if self.macs is None:
            lines.append("not run: give `example`, an input of the model, to try it and count GMACs")
        new = [replacement.name for replacement in self.replaced if not replacement.copied]
        if new:
            lines.append(f"{self.note} {', '.join(new)}")
        few = [replacement.name for replacement in self.replaced if not replacement.determined]
        if few:
            lines.append(
                "too few positions to tell how near the start is, give `start` more or larger images: "
                + ", ".join(few)
            )
        lines += [f"kept: {name} ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def _row(replacement: Replacement) -> tuple[str, str, str, str, str]:
    before, after = replacement.parameters
    counts = " → ".join(f"{count / 1e9:.3g}" for count in replacement.macs or ())
    start = "exact" if replacement.exact else _percent(replacement.explained)
    return replacement.name, f"{before:,} → {after:,}", counts, start, _percent(replacement.averages)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{min(share, 0.999):.1%}"


def swap(
    model: nn.Module,
    sites: Sequence[Place],
    chosen: Sequence[Place],
    modules: Sequence[nn.Module],
    example: Example | None,
    note: str,
) -> ReplacementReport:
    """Put modules at the chosen sites, all or none, and count before and after."""
    if example is None:
        example, before = _count_image(model)
    else:
        fix = "; without `example`, it is replaced and not counted"
        before = _count(model, example, "does not take the example", fix)
    parameters = _parameters(model)
    sizes = [_parameters(model.get_submodule(site.name)) for site in chosen]
    with installed(model, chosen, modules):
        after = None if example is None else _count(model, example, "does not run with ATConv in it")
        replaced = [
            Replacement(
                site.name,
                (size, _parameters(module)),
                _macs(before, after, site.name),
                site.copied,
                site.explained,
                site.averages,
                site.exact,
                site.determined,
            )
            for site, size, module in zip(chosen, sizes, modules, strict=True)
        ]
        kept = {site.name: site.reason or "not chosen" for site in sites if site not in chosen}
        total = _macs(before, after, "")
        return ReplacementReport(replaced, kept, (parameters, _parameters(model)), total, note)


def check_arguments(model: Any, where: Any, example: Any, name: str) -> None:
    """Raise TypeError for what is no model, function or input."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} takes a model, an nn.Module, got a {type(model).__name__}")
    if where is not None and not callable(where):
        raise TypeError(
            "where is a function of name and module, such as lambda name, module: name == 'blocks.0.attn', "
            f"got {where!r}"
        )
    if not isinstance(example, (NoneType, Tensor, tuple, Mapping)):
        raise TypeError(
            "an example is a tensor, a tuple of positional arguments or a dictionary of named ones, "
            f"got a {type(example).__name__}"
        )


def choose(
    model: nn.Module,
    sites: Sequence[AnyPlace],
    where: Where | None,
    kind: str,
    every: int = 1,
    blocks: Collection[int] | None = None,
) -> list[AnyPlace]:
    """The sites that the arguments ask for.

    Raises:
        ValueError: there are none, or `where` asks for one that cannot be replaced.
    """
    wanted = [site for site in sites if where is None or where(site.name, model.get_submodule(site.name))]
    rejected = {site.name: site.reason for site in wanted if site.reason}
    if rejected and (where is not None or len(rejected) == len(wanted)):
        fix = "" if where is None else "; let `where` pass over such"
        raise nothing_replaced(model, rejected, fix)
    replaceable = [site for site in sites if not site.reason]
    if blocks is not None and not set(blocks) <= set(range(len(replaceable))):
        raise ValueError(f"blocks must lie in 0…{len(replaceable) - 1}, got {sorted(blocks)}")
    chosen = [
        site
        for number, site in enumerate(replaceable)
        if site in wanted and (number + 1) % every == 0 and (blocks is None or number in blocks)
    ]
    if not chosen:
        names = ", ".join(site.name for site in sites[:3])
        raise ValueError(f"none of the {len(sites)} {kind} was chosen: {names}, …")
    return chosen


def nothing_replaced(model: nn.Module, rejected: Mapping[str, str], fix: str = "") -> ValueError:
    """The error that names what cannot be replaced, and the reason of each."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in rejected.items():
        names[reason].append(name or type(model).__name__)
    reasons = "; ".join(f"{_first_names(those)}: {reason}" for reason, those in names.items())
    return ValueError(f"nothing was replaced. {reasons}{fix}")


def _first_names(names: Sequence[str]) -> str:
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
