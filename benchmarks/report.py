"""From measurements to one page with its plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import operators
import sizes
from atconv.deploy.timing import ROUNDS, WARM_UP

__all__ = ["write_report"]

Rows = list[dict[str, Any]]
# From the project's aims: ours ÷ floor by form and dtype.
AIMS = {
    ("as it comes", "float32"): 1.35,
    ("as it comes", "bfloat16"): 1.65,
    ("folded", "float32"): 1.3,
    ("folded", "bfloat16"): 1.5,
    ("compiled", "float32"): 1.12,
    ("compiled", "bfloat16"): 1.12,
}


def write_report(folder: Path) -> Path:
    """Write MACHINE.md next to the folder MACHINE, and its plots into the folder.

    Returns:
        the page.
    """
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    rows: dict[str, Rows] = {name: result["rows"] for name, result in results.items()}
    lines = [
        "# Speed of AttNet-T2 and its operator\n",
        *(f"{line}\n" for line in dict.fromkeys(result["machine"] for result in results.values())),
        f"Medians of {ROUNDS} rounds after {WARM_UP} of warm-up. Models of one row ran interleaved in one",
        "process; a floor is measured in it too, before and after them.",
        "Written by `make bench`.\n",
    ]
    sections = {
        _inference: "eager-8",
        _others: "eager",
        _training: "training",
        _commands: "commands",
        _sizes: "sizes",
        _operators: "operators",
        _deployed: "deployed",
    }
    for section, results_of in sections.items():
        if any(name.startswith(results_of) for name in rows):
            lines += section(rows, folder)
    page = folder.with_suffix(".md")
    page.write_text("\n".join(lines) + "\n")
    return page


def _inference(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## Against the floor\n"
    yield "The floor: every product and convolution of the model at its own size, each alone in its best form"
    yield "and layout. Plain: the mathematics written down directly (`benchmarks/plain.py`). Batch 8, 224².\n"
    cells = []
    for dtype in ("float32", "bfloat16"):
        for job, forms in (("eager", ("plain", "as it comes", "folded")), ("compiled", ("folded",))):
            by_model = {row["model"]: row for row in rows.get(f"{job}-8-{dtype}", [])}
            for form in forms if by_model else ():
                taken, floor = by_model[form]["seconds"], by_model["floor"]["seconds"]
                both = by_model["floor"].get("before and after", [floor])
                floors = " … ".join(dict.fromkeys(_ms(seconds) for seconds in sorted(both)))
                label = "compiled" if job == "compiled" else form
                aim = AIMS.get((label, dtype))
                cells.append(
                    (dtype, f"{label}, folded" if job == "compiled" else label, _ms(taken), floors,
                     f"{taken / floor:.2f} ×", f"≤ {aim}" if aim else "")
                )  # fmt: skip
    yield from _table(("dtype", "form", "ms", "floor, ms", "÷ floor", "aim"), cells)
    for name, entries in rows.items():
        if name.startswith("eager-8"):
            kinds = entries[0]["kinds"]
            parts = ", ".join(
                f"{kind} {_ms(kinds[kind])}" for kind in sorted(kinds, key=kinds.get, reverse=True)
            )
            yield f"The floor's products in {name.removeprefix('eager-8-')}, ms: {parts}.\n"
        if name.startswith("compiled-8"):
            took = {row["model"]: row["compile"] for row in entries}
            yield (
                f"Compiling took {took['folded']:.0f} s in {name.removeprefix('compiled-8-')}; ConvNeXt-T, "
                f"{took['ConvNeXt-T']:.0f} s.\n"
            )


def _others(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## Compared with other models\n"
    yield "Milliseconds at 224², eager; compiled where it says so. AttNet-T2 has 4.73 GMACs, ConvNeXt-T 4.46,"
    yield "Swin-T 4.36, DeiT-S 4.25.\n"
    cells = []
    for dtype in ("float32", "bfloat16"):
        for job in ("eager-8", "eager-1", "compiled-8"):
            milliseconds = {row["model"]: _ms(row["seconds"]) for row in rows.get(f"{job}-{dtype}", [])}
            if milliseconds:
                mode, batch = job.split("-")
                names = ("as it comes", "folded", "ConvNeXt-T", "Swin-T", "DeiT-S")
                cells.append((dtype, mode, batch, *(milliseconds.get(name, "–") for name in names)))
    headers = ("dtype", "mode", "batch", "AttNet-T2", "folded", "ConvNeXt-T", "Swin-T", "DeiT-S")
    yield from _table(headers, cells)


def _training(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## Training\n"
    yield "A step of AttNet-T2, batch 8, 224², AdamW; bfloat16 is autocast. Memory: peak of forward and"
    yield "backward above the idle model, each in a new process.\n"
    cells = []
    for name, entries in rows.items():
        if name.startswith("training-"):
            dtype, base = name.rsplit("-", 1)[1], entries[0]["seconds"]
            for row in entries:
                compiling = f"{row['compile']:.0f} s" if row["compile"] else ""
                cells.append(
                    (dtype, row["model"], _ms(row["seconds"]), f"{base / row['seconds']:.2f} ×", compiling)
                )
    yield from _table(("dtype", "model", "ms a step", "faster than plain", "compiling took"), cells)
    for name, entries in rows.items():
        if name.startswith("memory-"):
            peaks = {row["model"]: row["bytes"] for row in entries}
            yield (
                f"Memory in {name.removeprefix('memory-')}: plain {peaks['plain'] / 2**20:.0f} MiB, ours "
                f"{peaks['ours'] / 2**20:.0f} MiB, {peaks['ours'] / peaks['plain']:.2f} ×.\n"
            )


def _commands(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## The commands, with the system's allocator and the tuned one\n"
    yield "AttNet-T2 at 224², batches of 8, start-up left out. Medians of 3 rounds of full commands.\n"
    measured = {(row["command"], row["tuned"]): row for row in rows.get("commands", [])}
    cells = []
    for command in dict.fromkeys(name for name, _ in measured):
        default, tuned = measured[command, False], measured[command, True]
        cells.append(
            (f"`atconv {command}`", _ms(default["seconds"]), _ms(tuned["seconds"]),
             f"{default['seconds'] / tuned['seconds']:.2f} ×",
             *(f"{row['bytes'] / 2**20:.0f}" for row in (default, tuned)))
        )  # fmt: skip
    headers = ("command", "ms an image, system", "tuned", "faster", "peak MiB, system", "tuned")
    yield from _table(headers, cells)


def _sizes(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    measured = rows.get("sizes", [])
    yield "## As images grow\n"
    if measured:
        sizes.plot(measured, folder / "sizes.png")
        yield f"![Time a pixel and memory against the size of an image]({folder.name}/sizes.png)\n"
    cells = []
    for name in dict.fromkeys(row["model"] for row in measured):
        by_size = {row["size"]: row for row in measured if row["model"] == name}
        a_pixel = {size: 1e9 * row["seconds"] / size**2 for size, row in by_size.items()}
        cells.append(
            (name, *(f"{value:.0f}" for value in a_pixel.values()), f"{a_pixel[1024] / a_pixel[224]:.2f} ×",
             *(f"{by_size[size]['bytes'] / 2**20:.0f}" for size in (224, 1024)))
        )  # fmt: skip
    headers = (
        "ns a pixel",
        *(f"{size}²" for size in sizes.SIZES),
        "1024² ÷ 224²",
        "MiB at 224²",
        "MiB at 1024²",
    )
    yield from _table(headers, cells)


def _operators(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## One layer\n"
    yield f"Milliseconds for one map of {operators.DIM} channels, channels last; self-attention is torch's,"
    yield f"trained on up to {math.isqrt(operators.MAX_POSITIONS)}²: a round on more takes half a minute.\n"
    for name, entries in rows.items():
        if not name.startswith("operators-"):
            continue
        dtype = name.removeprefix("operators-")
        operators.plot(entries, folder / f"{name}.png")
        yield f"![Time of one layer against the size of its map]({folder.name}/{name}.png)\n"
        milliseconds = {
            (row["mixer"], row["size"], row["backward"]): _ms(row["seconds"], 2) for row in entries
        }
        cells = [
            (dtype, "forward and backward" if backward else "forward", f"{size}²",
             *(milliseconds.get((mixer, size, backward), "–") for mixer in operators.NAMES))
            for backward in (False, True)
            for size in operators.SIZES
        ]  # fmt: skip
        yield from _table(("dtype", "pass", "map", *operators.NAMES), cells)


def _deployed(rows: dict[str, Rows], folder: Path) -> Iterator[str]:
    yield "## As a file\n"
    yield "At 224², AttNet-T2 folded, float32 but for int8. Errors are relative to PyTorch's largest logit;"
    yield "what int8 costs in accuracy `atconv export --int8` reports for a trained model.\n"
    cells = []
    for model, file in dict.fromkeys((row["model"], row["file"]) for row in rows.get("deployed", [])):
        by_batch = {
            row["batch"]: row for row in rows["deployed"] if (row["model"], row["file"]) == (model, file)
        }
        worst = [
            f"{max(row[key] for row in by_batch.values()):{digits}}"
            if all(key in row for row in by_batch.values())
            else "–"
            for key, digits in (("error", ".0e"), ("writing", ".0f"))
        ]
        times = [_ms(by_batch[batch]["seconds"]) if batch in by_batch else "–" for batch in (1, 8)]
        cells.append((model, file, *times, *worst))
    yield from _table(("model", "form", "ms, batch 1", "ms, batch 8", "error", "seconds to write"), cells)


def _table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (headers, ["---"] * len(headers), *cells):
        yield f"| {' | '.join(row)} |"
    yield ""


def _ms(seconds: float, digits: int = 0) -> str:
    return f"{1000 * seconds:.{digits}f}"
