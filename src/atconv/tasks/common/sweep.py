"""A sweep: variants × seeds. Each run adds one row to a table; rows of two variants are compared in pairs."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from scipy import stats

from atconv.io import read_rows, write_rows

__all__ = ["Job", "Sweep", "confidence_half_width", "paired_differences", "seed_by_seed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    variant: str
    seed: int

    @property
    def folder(self) -> str:
        """Its name as part of a path."""
        return re.sub(r"[\s/\\]", "-", f"{self.variant}-{self.seed}")


def seed_by_seed(seeds: Mapping[str, int]) -> list[Job]:
    """Jobs of variants that have so many seeds each, in an order whose early end leaves complete pairs."""
    return [Job(name, seed) for seed in range(max(seeds.values())) for name in seeds if seed < seeds[name]]


@dataclass(frozen=True)
class Sweep:
    """Makes the missing rows of a table.

    Several processes may work on one table, each on the next run that no other process has.
    """

    table: Path
    """CSV: variant, seed, device and precision of each run, and what `make_row` returns"""
    runs: Path
    """folder with a folder for each run"""
    make_row: Callable[[Job, Path], dict[str, Any]]
    """makes the run, or continues it, in a folder; returns the other columns of its row"""
    device: torch.device
    precision: str
    column: str = "variant"
    """name of the column that holds the variant"""

    def run(self, jobs: Sequence[Job]) -> None:
        """Make every run that has no row yet.

        Raises:
            ValueError: the table has rows of another precision.
            FloatingPointError: some runs diverged and have no row; all others have ended.
        """
        self._check_precision()
        for folder in (self.runs, self.table.parent):
            folder.mkdir(parents=True, exist_ok=True)
        busy, diverged = 0, []
        for job in jobs:
            run = self.runs / job.folder
            try:
                with FileLock(self.runs / f"{job.folder}.lock", timeout=0):
                    if not self.has_row(job):
                        logger.info("%s, seed %d: %s", job.variant, job.seed, run)
                        self._append(job, self.make_row(job, run))
            except Timeout:
                busy += 1
            except FloatingPointError as error:  # it would diverge again: do not let it stop the other runs
                diverged.append(f"{job.variant}, seed {job.seed}: {error}")
                logger.warning(diverged[-1])
        if busy:
            logger.info("%d of the runs were left to other processes: they will add the rows", busy)
        if diverged:
            raise FloatingPointError(f"{len(diverged)} runs have no row. {'; '.join(diverged)}")

    def has_row(self, job: Job) -> bool:
        key = (job.variant, str(job.seed))
        return any((row[self.column], row["seed"]) == key for row in read_rows(self.table))

    def _append(self, job: Job, columns: dict[str, Any]) -> None:
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        row = {self.column: job.variant, "seed": job.seed, **columns}
        row |= {"device": device, "precision": self.precision}
        with FileLock(self.table.with_suffix(".lock")):
            rows: list[dict[str, Any]] = [*read_rows(self.table), row]
            names = dict.fromkeys(name for each in rows for name in each)
            write_rows(self.table, [{name: each.get(name, "") for name in names} for each in rows])

    def _check_precision(self) -> None:
        """Raise ValueError where the table's rows were trained in another precision."""
        precisions = {row["precision"] for row in read_rows(self.table) if row.get("precision")}
        if precisions - {self.precision}:
            raise ValueError(
                f"{self.table} has rows trained in {' and '.join(sorted(precisions))}, this machine trains "
                f"in {self.precision}: continue where those were made, or begin another folder with --out"
            )


def paired_differences(values: Mapping[tuple[str, int], float], variant: str, reference: str) -> list[float]:
    """Values of a variant minus those of the reference, for every seed that both have.

    Args:
        values: by variant and seed.
    """
    return [
        value - values[reference, seed]
        for (name, seed), value in values.items()
        if name == variant and (reference, seed) in values
    ]


def confidence_half_width(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % confidence interval of the mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5
