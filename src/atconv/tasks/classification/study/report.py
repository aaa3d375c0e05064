"""From a study's rows to a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from atconv.engine.progress import make_table, plain_console
from atconv.io import read_rows, write_atomically
from atconv.tasks.classification.study.plan import Study
from atconv.tasks.classification.study.plots import compare_variants
from atconv.tasks.classification.study.results import read_results
from atconv.tasks.classification.study.summary import Summary, summarize

__all__ = ["report_study"]


def report_study(study: Study, out: Path, console: Console | None = None) -> Path:
    """Print a table of the rows so far; write it to results.md, and draw results.png.

    Returns:
        the picture.

    Raises:
        ValueError: there are no rows.
    """
    results = read_results(out / "results.csv")
    if not results:
        raise ValueError(f"{out / 'results.csv'} has no rows yet: no run has ended")
    order = {variant.name: place for place, variant in enumerate(study.variants)}
    results.sort(key=lambda result: order.get(result.variant, len(order)))
    found = summarize(results, study.reference)
    times = {row["variant"]: row for row in read_rows(out / "timing.csv")}
    images = next((row["batch"] for row in times.values()), "")
    heads = (
        "mixer", "seeds", "top-1, %", f"minus {study.reference} [95 %]", "parameters", "MMACs",
        f"ms to train on {images} images" if images else "", f"ms to infer {images} images" if images else "",
    )  # fmt: skip
    cells = [_cells(one, times.get(one.variant, {})) for one in found]
    (console or plain_console()).print(make_table(str(out), heads, cells))
    write_atomically(out / "results.md", lambda path: path.write_text(_markdown(heads, cells)))
    title = f"{out.resolve().name}: one network, {study.recipe.epochs} epochs, a token mixer in every block"
    compare_variants(found, study.reference, title, out / "results.png")
    return out / "results.png"


def _cells(one: Summary, seconds: dict[str, str]) -> tuple[str, ...]:
    spread = f" ± {one.deviation:.2f}" if one.seeds > 1 else ""
    difference = "" if one.difference is None else f"{one.difference:+.2f}"
    interval = "" if one.half_width is None else f" ± {one.half_width:.2f}"
    times = (seconds.get(name) for name in ("training_step", "inference_batch"))
    return (
        one.variant,
        str(one.seeds),
        f"{one.mean:.2f}{spread}",
        difference + interval,
        f"{one.parameters:,}",
        f"{one.macs / 1e6:.1f}",
        *(f"{1000 * float(time):.0f}" if time else "" for time in times),
    )


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ruler, *cells))
