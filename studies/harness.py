"""What all studies share: their commands, rows made side by side, and the statistics of their reports.

    python -m studies.NAME.study run DATA       # every row that is missing; stop it and start it as you like
    python -m studies.NAME.study report         # tables and plots of the rows that are there

A study lists its jobs (variants × seeds) and makes one row a job; `atconv.tasks.common.sweep` sees to it that
each row is made once. Committed rows count: to make all of them again, give `run` and `report` the same new
folder with --out.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from scipy import optimize, stats

from atconv import tune_allocator
from atconv.engine.devices import resolve_device
from atconv.tasks.common.sweep import Job, Sweep, confidence_half_width, paired_differences
from atconv.terminal import fail

__all__ = [
    "TITLES",
    "machine_options",
    "main",
    "mean_and_deviation",
    "paired_difference",
    "pairs_by_seed",
    "run_side_by_side",
    "select_jobs",
    "smallest_difference",
    "synchronize",
]

logger = logging.getLogger(__name__)

TITLES = {
    "fashion_mnist": "Fashion-MNIST",
    "cued_garments": "Cued garments",
    "natural": "CIFAR-10",
}
"""what plots call the sets"""

Stage = Callable[[argparse.Namespace], object]


def main(
    doc: str | None,
    folder: Path,
    plan: Callable[[argparse.Namespace], tuple[Sweep, Sequence[Job]]],
    report: Stage,
    stages: Mapping[str, Stage] | None = None,
    data_stages: Collection[str] = ("run",),
) -> None:
    """The commands of a study.

    Args:
        doc: of the study, for --help.
        folder: of its committed rows; --out names another one.
        plan: the rows to make and their jobs. It gets the options `data`, `device` (a torch.device),
            `workers` (None: the recipe's), `out` (folder of the tables) and `runs` (folder of the runs).
        report: makes tables and plots of the rows in `out`.
        stages: further commands by name, such as time and pilot.
        data_stages: the commands that take data.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("run", "report", *(stages or {})))
    parser.add_argument("data", nargs="?", help="data of the study or name of a set, see above")
    parser.add_argument("--seeds", type=int, nargs="+", help="make only the rows of these seeds")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="make only the rows of these variants")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--workers", type=int, help="data-loading processes of each run; default: the recipe's"
    )
    parser.add_argument("--out", type=Path, help="folder of tables and runs, in place of the committed rows")
    args = parser.parse_args()
    if args.stage in data_stages and args.data is None:
        parser.error(f"{args.stage} takes data: see --help")
    if args.jobs < 1:
        parser.error(f"--jobs is 1 or more, got {args.jobs}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.runs = args.out / "runs" if args.out else folder.parents[1] / "runs" / f"study-{folder.name}"
    args.out = args.out or folder
    tune_allocator()
    with _failing_in_one_line():
        args.device = resolve_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.stage == "run":
            sweep, jobs = plan(args)
            run_side_by_side(sweep, select_jobs(jobs, args.seeds, args.only), args.jobs)
            if not sweep.table.exists():
                return  # other processes make the first rows
        (stages or {}).get(args.stage, report)(args)


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    try:
        yield
    except (FloatingPointError, OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted: the same command continues", 130)


def machine_options(args: argparse.Namespace) -> dict[str, object]:
    """The options of a recipe that the command line decides: the device, and where given the workers."""
    return {"device": args.device.type} | ({} if args.workers is None else {"workers": args.workers})


def select_jobs(
    jobs: Sequence[Job], seeds: Collection[int] | None, variants: Collection[str] | None
) -> list[Job]:
    """The jobs of some seeds and variants.

    Raises:
        ValueError: there is no such variant or seed.
    """
    known = list(dict.fromkeys(job.variant for job in jobs))
    if unknown := set(variants or ()) - set(known):
        raise ValueError(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if excess := set(seeds or ()) - {job.seed for job in jobs}:
        raise ValueError(f"no seed {min(excess)}: they go from 0 to {max(job.seed for job in jobs)}")
    return [
        job
        for job in jobs
        if (seeds is None or job.seed in seeds) and (variants is None or job.variant in variants)
    ]


def run_side_by_side(sweep: Sweep, jobs: Sequence[Job], processes: int) -> None:
    """Make the missing rows in so many processes at most, which share the CPU's cores.

    Raises:
        SystemExit: a process failed; the rows that it did not make are still missing.
    """
    missing = sum(not sweep.has_row(job) for job in jobs)
    logger.info("%d of %d rows are missing in %s", missing, len(jobs), sweep.table)
    processes = min(processes, missing)
    if processes <= 1:
        sweep.run(jobs)
        return
    threads = str(max(1, torch.get_num_threads() // processes))
    os.environ.setdefault("OMP_NUM_THREADS", threads)  # read by each process when it starts
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(sweep, jobs)) for _ in range(processes)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:  # where this process is interrupted
            if worker.is_alive():
                worker.terminate()
    if any(worker.exitcode for worker in workers):
        codes = ", ".join(str(worker.exitcode) for worker in workers)
        fail(f"a process failed (exit codes {codes}): its rows are missing")


def _work(sweep: Sweep, jobs: Sequence[Job]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tune_allocator()
    with _failing_in_one_line():
        sweep.run(jobs)


def _end_with_parent() -> None:
    """End this process when the command that started it has ended in any way. No run goes on unseen then, and
    keeps others from continuing it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def mean_and_deviation(values: Sequence[float], mean: str = ".4g", deviation: str = ".2g") -> str:
    """Mean ± standard deviation, in these formats; of one value, the value."""
    spread = f" ± {statistics.stdev(values):{deviation}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{mean}}{spread}"


def paired_difference(
    rows: Sequence[Mapping[str, str]], metric: str, variant: str, reference: str, column: str = "variant"
) -> str | None:
    """Mean of a variant's metric minus the reference's, paired by seed, with its 95 % interval. One pair has
    none; without a pair there is nothing."""
    pairs = pairs_by_seed(rows, metric, variant, reference, column)
    if not pairs:
        return None
    half = confidence_half_width(pairs)
    interval = "(one pair)" if half is None else f"± {half:.3g} (95 %, {len(pairs)} pairs)"
    return f"{statistics.mean(pairs):+.4g} {interval}"


def pairs_by_seed(
    rows: Sequence[Mapping[str, str]], metric: str, variant: str, reference: str, column: str = "variant"
) -> list[float]:
    """A variant's metric minus the reference's, for every seed that both have."""
    values = {(row[column], int(row["seed"])): float(row[metric]) for row in rows}
    return paired_differences(values, variant, reference)


def smallest_difference(deviation: float, pairs: int) -> float:
    """The mean paired difference that a two-sided t test at the 5 % level finds four times in five.

    Args:
        deviation: standard deviation of single paired differences.
        pairs: how many there will be, 2 or more.
    """
    freedom = pairs - 1
    critical = stats.t.ppf(0.975, freedom)
    shift = optimize.brentq(lambda shift: stats.nct.sf(critical, freedom, shift) - 0.8, 0.0, 40.0)
    return float(shift) * deviation / pairs**0.5


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator's work is done, before the clock is read."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
