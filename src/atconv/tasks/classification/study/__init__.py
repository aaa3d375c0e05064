"""The same network, recipe, data order and budget, one token mixer after another: which is right more often?

A study is a YAML file:

    reference: ATConv
    seeds: 8
    recipe: {data: torch/fashion_mnist, model: attnet_xxs, …}     # fields of `atconv train`
    variants:
      ATConv: {token_mixer: atconv}
      depthwise 7×7: {token_mixer: depthwise7}
      pooling: {token_mixer: pooling, seeds: 3}
      attention late: {token_mixer: [atconv, atconv, attention, attention]}      # by stage

Widths are adjusted until each variant has the reference's parameters to 2 %. Each run adds a row to
results.csv; a run that has a row is not run again, an interrupted one goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from atconv.engine.progress import plain_console
from atconv.tasks.classification.study.costs import pilot_study, time_study
from atconv.tasks.classification.study.plan import read_study
from atconv.tasks.classification.study.report import report_study
from atconv.tasks.classification.study.running import run_study

__all__ = ["study"]


def study(
    config: str,
    out: str = "runs/study",
    stage: Literal["time", "pilot", "run", "report"] = "run",
    console: Console | None = None,
) -> Path:
    """Compare token mixers as a YAML file says.

    Args:
        config: the study's YAML file.
        out: folder for the runs, timing.csv, pilot.csv, results.csv, results.md and results.png.
        stage: time measures seconds, on an idle machine; pilot does the first runs and says what all will
            take and can show; run does every run that is left, and reports; report draws what is there.
        console: where progress shows.

    Returns:
        the folder.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not describe a study.
    """
    console = console or plain_console()
    described, folder = read_study(config), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if stage == "time":
        time_study(described, folder, console)
    if stage == "pilot":
        pilot_study(described, folder, console)
    if stage == "run":
        run_study(described, folder, console)
    if stage in ("run", "report"):
        report_study(described, folder, console)
    return folder
