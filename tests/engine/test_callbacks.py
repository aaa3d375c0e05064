"""Callbacks: called in order, by every process, and the best epoch that they keep and stop on."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atconv.engine.callbacks import Callback, EarlyStopping, ProgressBar
from atconv.engine.history import History
from atconv.engine.progress import progress
from atconv.engine.tables import speed_text
from atconv.engine.trainer import Trainer
from atconv.tasks import resume, train
from support.tiny import read_rows, tiny_config

STEPS = 10


class Recorder(Callback):
    """Writes down when it is called."""

    def __init__(self, calls: list[str], name: str = "") -> None:
        self.calls, self.name = calls, name

    def _note(self, event: str) -> None:
        self.calls.append(f"{self.name}{event}")

    def on_resume(self, trainer: Any) -> None:
        self._note(f"resume at {trainer.step}")

    def on_fit_start(self, trainer: Any) -> None:
        self._note(f"start at {trainer.step}")

    def on_step_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        assert set(metrics) == {"loss", "top1", "images_per_second"}
        self._note(f"step {trainer.step}")

    def on_epoch_end(self, trainer: Any, row: dict[str, Any]) -> None:
        assert row is trainer.history.rows[-1]
        assert row["epoch"] == trainer.epoch
        self._note(f"epoch {trainer.epoch}")

    def on_fit_end(self, trainer: Any) -> None:
        self._note("end")


class FailAt(Callback):
    """Raises KeyError at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        if trainer.step == self.step:
            raise KeyError(self.step)


class StopAfter(Callback):
    """Stops after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def stops(self, trainer: Any) -> bool:
        return trainer.epoch >= self.epoch


def steps(first: int, last: int) -> list[str]:
    return [f"step {step}" for step in range(first, last + 1)]


def test_a_callback_is_called_at_each_step_and_epoch(tmp_path: Path) -> None:
    calls: list[str] = []
    train(tiny_config(epochs=2), tmp_path / "run", callbacks=[Recorder(calls)])
    assert calls == ["start at 0", *steps(1, 10), "epoch 1", *steps(11, 20), "epoch 2", "end"]


def test_callbacks_are_called_in_the_order_given(tmp_path: Path) -> None:
    calls: list[str] = []
    train(tiny_config(), tmp_path / "run", callbacks=[Recorder(calls, "a "), Recorder(calls, "b ")])
    assert calls[::2] == [call.replace("b ", "a ") for call in calls[1::2]]
    assert calls[:4] == ["a start at 0", "b start at 0", "a step 1", "b step 1"]


def test_the_files_of_an_epoch_are_there_before_your_own_callbacks(tmp_path: Path) -> None:
    class Reader(Callback):
        def on_epoch_end(self, trainer: Any, row: dict[str, Any]) -> None:
            written = read_rows(trainer.run.path / "metrics.csv")
            assert written[-1] == {name: str(value) for name, value in row.items()}
            assert trainer.run.weights.is_file()

    train(tiny_config(), tmp_path / "run", callbacks=[Reader()])


def test_an_error_of_a_callback_ends_the_run_which_then_resumes(tmp_path: Path) -> None:
    calls: list[str] = []
    config, run = tiny_config(epochs=2), tmp_path / "run"
    with pytest.raises(KeyError):
        train(config, run, callbacks=[Recorder(calls), FailAt(13)])
    assert calls == ["start at 0", *steps(1, 10), "epoch 1", *steps(11, 13), "end"]
    calls.clear()
    resume(run, callbacks=[Recorder(calls)])
    assert calls == ["start at 10", "resume at 10", *steps(11, 20), "epoch 2", "end"]
    calls.clear()
    resume(run, callbacks=[Recorder(calls)])
    assert calls == [], "a finished run is left as it is"


def test_muon_and_the_adamw_in_it_resume_to_the_same_end(tmp_path: Path) -> None:
    config = tiny_config(epochs=2, optimizer="muon")
    train(config, tmp_path / "whole")
    with pytest.raises(KeyError):
        train(config, tmp_path / "cut", callbacks=[FailAt(13)])
    resume(tmp_path / "cut")
    files = (tmp_path / name / "model.safetensors" for name in ("cut", "whole"))
    torch.testing.assert_close(*map(load_file, files), rtol=0, atol=0)


def test_a_callback_stops_a_run_which_is_then_reported(tmp_path: Path) -> None:
    run = train(tiny_config(epochs=5), tmp_path / "run", callbacks=[StopAfter(2)])
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["1", "2"]
    assert (run / "metrics.json").is_file()


class Writer(Callback):
    """Writes into what it is given."""

    def on_step_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        metrics["loss"] = -1.0

    def on_epoch_end(self, trainer: Any, row: Any) -> None:
        for each in (row, trainer.history.rows[-1]):
            with pytest.raises(TypeError, match="does not support item assignment"):
                each["val_top1"] = 101.0


def test_a_callback_cannot_change_what_the_run_writes(tmp_path: Path) -> None:
    runs = [
        train(tiny_config(epochs=2), tmp_path / name, callbacks=callbacks)
        for name, callbacks in (("plain", []), ("written", [Writer()]))
    ]
    tables = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / "metrics.csv")]
        for run in runs
    ]
    assert tables[0] == tables[1]
    assert resume(runs[1]) == runs[1]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([Recorder], "got the class Recorder"),
        ([lambda trainer: None], "got a function"),
        ([StopAfter(1), "csv"], "got a str"),
        (StopAfter(1), "got a StopAfter"),
        (None, "got a NoneType"),
        ([None], "got a NoneType"),
    ],
    ids=["class", "function", "text", "no list", "None", "None in a list"],
)
def test_what_is_no_callback_is_rejected_before_anything_is_made(
    callbacks: Any, message: str, tmp_path: Path
) -> None:
    for start in (lambda: train(tiny_config(), tmp_path / "run", callbacks=callbacks),
                  lambda: resume(tmp_path / "run", callbacks=callbacks)):  # fmt: skip
        with pytest.raises(TypeError, match=f"instances of subclasses of .*Callback.*{message}"):
            start()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            {"on_epoch": lambda self, trainer, row: None},
            r"on_epoch is never called: .*; did you mean on_epoch_end\?",
        ),
        (
            {"on_epoch_end": lambda self, row: None},
            r"on_epoch_end must be on_epoch_end\(self, trainer, row\)",
        ),
        ({"stops": lambda self: True}, r"stops must be stops\(self, trainer\)"),
    ],
    ids=["misspelled", "too few arguments", "none"],
)
def test_a_hook_that_cannot_be_called_is_rejected_at_once(
    hooks: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=f"Mine.{message}"):
        train(tiny_config(), tmp_path / "run", callbacks=[type("Mine", (Callback,), hooks)()])
    assert not (tmp_path / "run").exists()


def history(*scores: float, monitor: str | None = "val_top1") -> History:
    return History(monitor, [{"val_top1": score} for score in scores])


@pytest.mark.parametrize(
    ("scores", "best", "improved"),
    [
        ((), -1, -1),
        ((1.0,), 0, 0),
        ((1.0, 2.0, 3.0), 2, 2),
        ((3.0, 2.0, 1.0), 0, 0),
        ((1.0, 3.0, 2.0, 3.0, 2.0), 3, 1),
        ((0.0, 0.0, 0.0), 2, 0),
    ],
)
def test_of_equal_epochs_the_last_is_kept_and_the_first_counts_as_better(
    scores: tuple[float, ...], best: int, improved: int
) -> None:
    assert (history(*scores).best, history(*scores).improved) == (best, improved)


@pytest.mark.parametrize("monitor", ["val_top1", None])
def test_an_epoch_without_a_finite_validation_loss_is_never_kept(monitor: str | None) -> None:
    rows = [{"val_top1": top1, "val_loss": loss} for top1, loss in ((5.0, 1.0), (9.0, math.nan))]
    assert (History(monitor, rows).best, History(monitor, rows).usable) == (0, True)
    assert not History(monitor, rows[1:]).usable
    assert not history(math.nan).usable


def test_weights_that_are_not_finite_end_a_run(tmp_path: Path) -> None:
    class Break(Callback):
        def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
            if trainer.step_in_epoch == trainer.plan.steps_per_epoch:
                next(trainer.ema_model.parameters()).data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match=r"the weights of stem\S+ are not finite after epoch 1"):
        train(tiny_config(), tmp_path / "run", callbacks=[Break()])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_epoch_that_is_kept_is_reported_with_the_one_that_it_equals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert history(1.0, 3.0, 2.0).kept == "2"
    assert history(1.0, 3.0, 2.0, 3.0).kept == "4 (equal to epoch 2)"
    trainer: Any = SimpleNamespace(
        history=history(1.0, 3.0, 2.0, 3.0),
        epoch=4,
        config=SimpleNamespace(epochs=9),
        run=SimpleNamespace(path="runs/mine"),
    )
    with caplog.at_level(logging.INFO, "atconv"):
        EarlyStopping(2).on_fit_end(trainer)
    assert "none was better than epoch 2 for 2 epochs" in caplog.text
    assert "epoch 4 (equal to epoch 2) is kept. To train longer: --resume runs/mine --epochs 9" in caplog.text


def test_without_a_metric_to_monitor_the_last_epoch_is_kept() -> None:
    last = history(3.0, 2.0, 1.0, monitor=None)
    assert (last.best, last.improved) == (2, 2)


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ((), False),
        ((5.0,), False),
        ((5.0, 4.0), False),
        ((5.0, 4.0, 4.5), True),
        ((5.0, 5.0, 5.0), True),
        ((5.0, 4.0, 6.0), False),
        ((5.0, 6.0, 6.0, 6.0), True),
    ],
)
def test_patience_counts_epochs_since_the_last_that_was_better(
    scores: tuple[float, ...], stops: bool
) -> None:
    trainer: Any = SimpleNamespace(history=history(*scores))
    assert EarlyStopping(2).stops(trainer) is stops


def test_a_speed_below_one_image_a_second_is_seconds_an_image() -> None:
    assert speed_text(0.25) == "4.0 s an image"
    assert speed_text(12.3) == "12 images/s"


def test_outside_a_terminal_a_line_within_an_epoch_says_how_long_it_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer: Any = SimpleNamespace(
        config=SimpleNamespace(epochs=2),
        plan=SimpleNamespace(steps_per_epoch=10, global_batch_size=8),
        epoch=0,
        step=5,
        step_in_epoch=5,
    )
    bar = ProgressBar(heartbeat=0)
    bar.bars.disable = True
    with caplog.at_level(logging.INFO, "atconv"):
        bar.on_step_end(trainer, {"loss": 1.5, "images_per_second": 0.5})
    assert "epoch   1/2  step 5/10  loss 1.5  2.0 s an image  0:04:00 left" in caplog.text
    quiet = ProgressBar(heartbeat=1e9)
    quiet.on_step_end(trainer, {"loss": 1.5, "images_per_second": 0.5})
    assert caplog.text.count("left") == 1


@pytest.mark.parametrize(
    ("items", "lines"),
    [
        (range(6), ["evaluating: 3 of 6, 0:01:00 left", "evaluating: 6 of 6, 0:00:00 left"]),
        ((i for i in range(6)), ["evaluating: 3", "evaluating: 6"]),
    ],
    ids=["of known length", "a stream"],
)
def test_a_long_loop_says_every_minute_how_far_it_is(
    items: Any, lines: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("atconv.engine.progress.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    done = []
    with caplog.at_level(logging.INFO, "atconv"):
        for item in progress(items, "evaluating"):
            done.append(item)
            now += 20
    assert done == list(range(6))
    assert [record.message for record in caplog.records] == lines
