"""What is the same for all tasks: configurations, callbacks, runs that open by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import atconv
from atconv.engine.run import Run
from atconv.engine.trainer import Callback, Trainer
from atconv.tasks import task_of, train
from support.tiny import reset_accelerate, tiny_config, trained_run


class Recorder(Callback):
    """Writes down what it is called for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.calls.append("start")

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.calls.append("step")

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self.calls.append(f"epoch {row['epoch']}")

    def on_fit_end(self, trainer: Trainer) -> None:
        self.calls.append("end")

    def stops(self, trainer: Trainer) -> bool:
        return trainer.epoch == 2


def test_a_callback_is_called_in_order_and_may_stop_the_run(tmp_path: Path) -> None:
    reset_accelerate()
    recorder = Recorder()
    run = train(tiny_config(epochs=5), tmp_path / "run", callbacks=[recorder])
    steps = recorder.calls.count("step") // 2
    epoch = ["step"] * steps
    assert recorder.calls == ["start", *epoch, "epoch 1", *epoch, "epoch 2", "end"]
    assert len((run / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("config", [{"data": "digits"}, None, "digits"], ids=["dict", "None", "text"])
def test_only_configurations_are_trained(tmp_path: Path, config: Any) -> None:
    with pytest.raises(TypeError, match="ClassificationConfig, DetectionConfig"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_needs_a_score(tmp_path: Path) -> None:
    from support.tiny_sit import train_tiny_sit

    with pytest.raises(ValueError, match="generation has none"):
        train_tiny_sit(tmp_path / "run", patience=1)
    assert not (tmp_path / "run").exists()


def copy_of_run(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors", "split.json"):
        (folder / name).write_bytes((trained_run() / name).read_bytes())
    return folder


def test_a_run_opens_though_options_came_since(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert options["task"] == "classification"
    del options["freeze_bn"]
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    predictor = atconv.load(run)
    assert predictor.config is not None
    assert predictor.config.freeze_bn is False


def test_a_run_that_does_not_name_its_task_is_known_by_its_options(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    options = yaml.safe_load((run / "config.yaml").read_text())
    del options["task"]
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    assert task_of(Run.open(run)).name == "classification"


def test_a_predictor_takes_no_option_that_it_does_not_know() -> None:
    import numpy as np

    with pytest.raises(TypeError, match="topk"):
        atconv.load(trained_run())([np.zeros((8, 8), np.uint8)], topk=3)


def test_no_images_have_no_results() -> None:
    assert atconv.load(trained_run())([]) == []
