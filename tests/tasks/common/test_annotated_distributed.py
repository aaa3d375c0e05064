"""Two processes train a detector and a segmenter to their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.tiny import read_rows
from support.tiny_dense import DETECT, SEGMENT, annotated_folder, options
from support.torchrun import in_two_processes


@pytest.mark.parametrize(
    ("command", "values", "metric"),
    [
        ("detect", DETECT, "val_map"),
        pytest.param("segment", SEGMENT, "val_miou", marks=pytest.mark.slow),
    ],
)
def test_two_gloo_processes_finish_a_run(
    command: str, values: dict[str, Any], metric: str, tmp_path: Path
) -> None:
    data = annotated_folder(tmp_path / "data", val=5)  # one process evaluates more than the other
    run = tmp_path / "run"
    arguments = options(values, batch_size=2, global_batch_size=4, epochs=1)
    ended = in_two_processes(command, "train", str(data), *arguments, f"--out={run}")
    assert ended.code == 0, ended.err
    rows = read_rows(run / "metrics.csv")
    assert len(rows) == 1
    assert 0 <= float(rows[0][metric]) <= 100
    assert json.loads((run / "metrics.json").read_text())["images"] == 5
    assert (run / "predictions.png").is_file()
