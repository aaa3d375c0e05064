"""Processes that share a batch, and micro-batches that are accumulated, train what one process trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atconv.data.sources.digits import DigitsSource
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from support.tiny import atconv, read_rows, tiny_options
from support.torchrun import in_processes, torchrun

STEPS = 20
BATCH = 32


def options(batch_size: int) -> list[str]:
    """Nothing random but the order of the images; BatchNorm in eval mode."""
    return tiny_options(
        epochs=2,
        batch_size=batch_size,
        global_batch_size=BATCH,
        crop_scale=[1.0, 1.0],
        crop_ratio=[1.0, 1.0],
        freeze_bn=True,
        ema_decay=0.0,
        drop_path_rate=0.0,
        label_smoothing=0.1,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{STEPS}"
    return load_checkpoint(newest)["model"]


def assert_same_weights(run: Path, expected: Path, tolerance: float) -> None:
    ours, theirs = weights(run), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits of other tests: for processes that torchrun starts `digits` are all of them."""
    folder, source = tmp_path_factory.mktemp("data") / "scans", DigitsSource()
    for i, label in enumerate(source.labels):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        source.read(i, "L").save(folder / str(label) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def one_process(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    ended = atconv("train", data, *options(BATCH), f"--out={run}")
    assert ended.code == 0, ended.err
    return run


def test_two_gloo_processes_train_the_weights_of_one(tmp_path: Path, data: Path, one_process: Path) -> None:
    run = tmp_path / "run"
    ended = torchrun("train", str(data), *options(BATCH // 2), f"--out={run}")
    assert ended.code == 0, ended.err
    assert "16 images × 2 process(es) × 1 micro-batch(es)" in ended.out
    assert ended.out.count("epoch   1/2") == ended.out.count("classes, images:") == 1, (
        "only the main one logs"
    )
    assert_same_weights(run, one_process, 1e-5)
    for ours, theirs in zip(
        read_rows(run / "metrics.csv"), read_rows(one_process / "metrics.csv"), strict=True
    ):
        for name in ("train_loss", "train_top1", "val_loss", "val_top1"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-4), name


def test_two_accumulated_micro_batches_train_the_weights_of_one(
    tmp_path: Path, data: Path, one_process: Path
) -> None:
    run = tmp_path / "run"
    ended = atconv("train", data, *options(BATCH // 2), f"--out={run}")
    assert ended.code == 0, ended.err
    assert "16 images × 1 process(es) × 2 micro-batch(es)" in ended.out
    assert_same_weights(run, one_process, 1e-5)


def test_the_weights_that_are_compared_were_trained(tmp_path: Path, data: Path, one_process: Path) -> None:
    run = tmp_path / "run"
    changed = [*options(BATCH), "--label-smoothing=0.2"]
    assert atconv("train", data, *changed, f"--out={run}").code == 0
    with pytest.raises(AssertionError):
        assert_same_weights(run, one_process, 1e-5)


@pytest.mark.slow
def test_two_processes_that_mix_and_augment_finish_and_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = tiny_options(epochs=1, mixup=0.2, cutmix=1.0, drop_path_rate=0.1, repeats=2, workers=1)
    assert in_processes("train", "digits", *arguments, f"--out={run}").code == 0
    again = in_processes("train", f"--resume={run}")
    assert again.code == 0, again.err
    assert (run / "metrics.json").is_file()
