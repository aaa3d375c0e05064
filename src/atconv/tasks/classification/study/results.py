"""results.csv of a study: a row a run, checked when it is read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from atconv.io import read_rows, write_rows

__all__ = ["Result", "inhibition_of", "read_results", "write_results"]


@dataclass(frozen=True)
class Result:
    """What one run gave."""

    variant: str
    seed: int
    top1: float
    """on test images, percent"""
    parameters: int
    macs: int
    seconds: float
    """of its training, beside whatever else the machine did"""
    widths: str
    precision: str
    inhibition: float | None
    """λ after the last epoch, mean of all channels of all layers; None in a network without it"""
    inhibition_spread: float | None
    """its standard deviation over the channels; it starts at 0"""

    @property
    def run(self) -> tuple[str, int]:
        return self.variant, self.seed


def read_results(path: Path) -> list[Result]:
    """The rows; none where there is no file.

    Raises:
        ValueError: a column is missing, a value is not a number, or two rows are of one run.
    """
    found: dict[tuple[str, int], Result] = {}
    for line, row in enumerate(read_rows(path), start=2):
        try:
            result = _parse(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {line} is not a row of a study: {error!r}; delete it, its run is still there"
            ) from error
        if result.run in found:
            raise ValueError(
                f"{path}, line {line}: {result.variant}, seed {result.seed} has a row already: delete one"
            )
        found[result.run] = result
    return list(found.values())


def _parse(row: dict[str, str]) -> Result:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return Result(
        row["variant"],
        int(row["seed"]),
        float(row["top1"]),
        int(row["parameters"]),
        int(row["macs"]),
        float(row["seconds"]),
        row["widths"],
        row["precision"],
        number("inhibition"),
        number("inhibition_spread"),
    )


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write the rows in place of the file."""
    write_rows(path, [asdict(result) for result in results])


def inhibition_of(run: Path) -> tuple[float | None, float | None]:
    """Mean and standard deviation of λ over the channels of all layers after a run's last epoch."""
    rows = read_rows(run / "inhibition.csv")
    last = [row["channels"].split() for row in rows if row["epoch"] == rows[-1]["epoch"]]
    values = [int(channel) / 1000 for channels in last for channel in channels]  # told in thousandths
    if not values:
        return None, None
    return round(statistics.mean(values), 4), round(statistics.pstdev(values), 4)
