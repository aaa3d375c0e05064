"""Each option of training, in a run of seconds."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import atconv  # noqa: F401  (registers the models with timm)
from atconv.data.imbalance import Occurrences, log_classes
from atconv.data.sources.digits import DigitsSource
from atconv.data.splits import Split
from atconv.engine import devices
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.tasks import train
from atconv.tasks.classification.config import inherit_config
from atconv.tasks.classification.data import imbalance_advice
from atconv.tasks.classification.model import check_model, make_model
from atconv.tasks.common.start import log_other_classes
from support.tiny import (
    TINY,
    TINY_ARGS,
    image_folder,
    read_rows,
    reset_accelerate,
    tiny_config,
    train_tiny,
    trained_run,
)
from support.tiny_sit import generation_run


def last_state(run: Path) -> dict[str, Any]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    return load_checkpoint(newest)


def last_weights(run: Path) -> dict[str, Tensor]:
    return last_state(run)["model"]


def initial_weights(**changes: Any) -> dict[str, Tensor]:
    return make_model(tiny_config(**changes), 10).state_dict()


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("plain") / "run")


def test_training_is_a_function_of_its_seed(plain: Path, tmp_path: Path) -> None:
    again = train_tiny(tmp_path / "again")
    other = train_tiny(tmp_path / "other", seed=1)
    assert not changed(last_weights(plain), last_weights(again))
    assert changed(last_weights(plain), last_weights(other))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    rows = read_rows(train_tiny(tmp_path / "run", epochs=6, lr=3e-3) / "metrics.csv")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) - 0.1
    assert float(rows[-1]["train_top1"]) > float(rows[0]["train_top1"]) + 10


def test_lambda_is_logged_by_layer_and_epoch(plain: Path) -> None:
    rows = read_rows(plain / "inhibition.csv")
    assert [row["epoch"] for row in rows] == ["1"] * 4
    assert all(0 < float(row["min"]) <= float(row["mean"]) <= float(row["max"]) < 1 for row in rows)


def test_the_test_split_is_read_once_and_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = DigitsSource.read

    def reading(self: DigitsSource, index: int, mode: Any) -> Any:
        read.append(index)
        return original(self, index, mode)

    monkeypatch.setattr(DigitsSource, "read", reading)
    run = train_tiny(tmp_path / "run", epochs=2)
    split = json.loads((run / "split.json").read_text())
    test = {int(name) for name in split["test"]}
    first = next(i for i, index in enumerate(read) if index in test)
    assert sorted(read[first:]) == sorted(test)
    assert not set(read[:first]) & test


def test_layer_decay_slows_the_early_layers(tmp_path: Path) -> None:
    groups = last_state(train_tiny(tmp_path / "run", layer_decay=0.5))["optimizer"]["param_groups"]
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1
    assert min(scales) <= 0.5**4
    rates = {group["lr"] / group["lr_scale"] for group in groups}
    assert max(rates) == pytest.approx(min(rates))


def test_alpha_and_vectors_are_left_out_of_decay(plain: Path) -> None:
    model = make_model(tiny_config(), 10)
    groups = last_state(plain)["optimizer"]["param_groups"]
    sizes = {group["weight_decay"]: len(group["params"]) for group in groups}
    matrices = [name for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("alpha")]
    assert sizes == {0.05: len(matrices), 0.0: len(list(model.parameters())) - len(matrices)}


def test_a_frozen_backbone_stays_and_the_head_learns(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", freeze_backbone=True)
    moved = changed(last_weights(run), initial_weights())
    assert moved
    assert all(name.startswith("head.") for name in moved)


def test_frozen_statistics_stay_while_weights_learn(tmp_path: Path, plain: Path) -> None:
    moved = changed(last_weights(train_tiny(tmp_path / "run", freeze_bn=True)), initial_weights())
    assert not {name for name in moved if name.endswith(STATISTICS)}
    assert "stem.norm1.weight" in moved
    assert {name for name in changed(last_weights(plain), initial_weights()) if name.endswith(STATISTICS)}


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping_changes_what_is_learned(tmp_path: Path, plain: Path, mode: str) -> None:
    options = {"optimizer": "sgd", "clip_mode": mode}
    free = last_weights(train_tiny(tmp_path / "free", optimizer="sgd"))
    assert changed(last_weights(train_tiny(tmp_path / "run", clip_grad=1e-3, **options)), free)
    barely = last_weights(train_tiny(tmp_path / "loose", clip_grad=1e9, **options))
    assert max(float((barely[n] - free[n]).abs().max()) for n in free) < 1e-5


def test_imbalance_is_said_and_the_best_epoch_follows_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "atconv")
    images = image_folder(tmp_path / "images", {"cat": 30, "dog": 6, "owl": 6})
    changes: dict[str, Any] = {"data": str(images), "epochs": 3}
    plain = train_tiny(tmp_path / "plain", **changes)
    assert re.search(r"imbalanced: \d+ cat, \d+ dog, \d+ owl\. .*--class-weights inverse", caplog.text)
    assert "validation top-1" in caplog.text
    caplog.clear()
    run = train_tiny(tmp_path / "weighted", class_weights="inverse", **changes)
    assert "the best epoch is picked by balanced accuracy" in caplog.text
    assert "validation balanced accuracy" in caplog.text
    rows = read_rows(run / "metrics.csv")
    scores = [float(row["val_balanced_accuracy"]) for row in rows]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best_epoch"] == 1 + max(range(3), key=lambda i: (scores[i], i))
    assert {"balanced_accuracy", "macro_f1"} <= set(metrics)
    assert "balanced accuracy" in caplog.text
    assert "macro F1" in caplog.text
    assert "val_balanced_accuracy" in read_rows(plain / "metrics.csv")[0]


def test_balanced_classes_are_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    log_classes({"train": Occurrences.of_labels(["a", "b"], [0] * 20 + [1] * 10)}, "")
    assert not caplog.text
    advice = imbalance_advice(tiny_config(mixup=0.1))
    log_classes({"train": Occurrences.of_labels(["a", "b", "c"], [0] * 10 + [1] * 5)}, advice)
    assert "10 a, 5 b, 0 c" in caplog.text
    assert "without mixup and cutmix" in caplog.text


def test_balanced_class_weights_train(tmp_path: Path, plain: Path) -> None:
    assert changed(last_weights(train_tiny(tmp_path / "run", class_weights="inverse")), last_weights(plain))


def test_patience_ends_a_run_that_does_not_improve(tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path / "run", epochs=9, patience=2, lr=1e-12, warmup_lr=1e-12, min_lr=0.0, freeze_bn=True
    )
    scores = [float(row["val_top1"]) for row in read_rows(run / "metrics.csv")]
    first_best = scores.index(max(scores)) + 1
    assert len(scores) == first_best + 2 < 9
    assert (run / "metrics.json").is_file()


def test_gradient_checkpointing_trains_the_same_weights(tmp_path: Path, plain: Path) -> None:
    ours = last_weights(train_tiny(tmp_path / "run", grad_checkpointing=True))
    for name, tensor in last_weights(plain).items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_weights_in_float32(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    ours = last_weights(train_tiny(tmp_path / "run", precision="bf16"))
    assert {t.dtype for t in ours.values()} == {torch.float32, torch.int64}
    assert changed(ours, last_weights(plain))
    difference = max(
        float((ours[n] - t).abs().max()) for n, t in last_weights(plain).items() if "running" not in n
    )
    assert difference < 0.05


@pytest.mark.slow
def test_a_compiled_model_trains_the_same_weights_under_the_same_names(
    tmp_path: Path, reset_compiler: None
) -> None:
    # Not Adam: it makes full steps of gradients that are rounding errors.
    expected = last_weights(train_tiny(tmp_path / "eager", optimizer="sgd", lr=0.1))
    ours = last_weights(train_tiny(tmp_path / "run", optimizer="sgd", lr=0.1, compile=True))
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_without_an_average_the_weights_themselves_are_kept(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", ema_decay=0.0)
    assert not changed(load_file(run / "model.safetensors"), last_weights(run))


def test_a_set_smaller_than_a_batch_trains(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 6, "bee": 6})
    run = train_tiny(tmp_path / "run", data=str(data), in_chans=3, test_fraction=0.2, val_fraction=0.2)
    assert read_rows(run / "metrics.csv")[0]["step"] == "1"
    assert changed(last_weights(run), initial_weights_of(data))


def initial_weights_of(data: Path) -> dict[str, Tensor]:
    return make_model(tiny_config(data=str(data), in_chans=3), 2).state_dict()


def test_images_of_one_class_are_rejected_and_leave_nothing(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        image_folder(tmp_path / "data" / split, {"ant": 1, "bee": 0}, seed)
    with pytest.raises(ValueError, match=r"has 1 class: classification needs two or more"):
        train_tiny(tmp_path / "run", data=str(tmp_path / "data"), in_chans=3, mixup=0.2)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_run_are_the_start(tmp_path: Path) -> None:
    start = initial_weights(checkpoint=str(trained_run()))
    assert not changed(start, load_file(trained_run() / "model.safetensors"))
    run = train_tiny(tmp_path / "run", checkpoint=str(trained_run()))
    assert changed(last_weights(run), start)


def test_weights_of_another_run_with_other_classes_start_with_a_new_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = image_folder(tmp_path / "data", {"ant": 20, "bee": 20})
    with caplog.at_level("INFO", "atconv"):
        options: dict[str, Any] = {"data": str(data), "freeze_backbone": True, "test_fraction": 0.2}
        config = tiny_config(checkpoint=str(trained_run()), image_size=12, in_chans=3, **options)
        reset_accelerate()
        run = train(config, tmp_path / "run", chosen={"image_size"})
    for line in (
        "classes: 10 in {}, 2 here; the classifier head is newly initialized",
        "image_size: 8 in {}, 12 here; the weights stay as they are",
        "in_chans: 1 in {}, 3 here; 1 is taken with the weights",
    ):
        assert line.format(trained_run()) in caplog.messages
    saved, source = load_file(run / "model.safetensors"), load_file(trained_run() / "model.safetensors")
    differing = {
        name
        for name in saved
        if saved[name].shape != source[name].shape or not torch.equal(saved[name], source[name])
    }
    assert {"head.fc.weight", "head.fc.bias"} <= differing
    assert all(name.startswith("head.") for name in differing)
    assert re.search(r"newly initialized, being of another shape there: head\.fc\.(bias|weight)", caplog.text)


def test_an_image_size_that_comes_with_weights_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(checkpoint=str(trained_run()), image_size=12)
    with caplog.at_level("INFO", "atconv"):
        assert inherit_config(config, {"image_size"}).image_size == 12
        assert not caplog.text
        assert inherit_config(config).image_size == 8
    assert caplog.messages == [f"image_size: 8 in {trained_run()}, 12 here; 8 is taken with the weights"]


@pytest.mark.parametrize("run", [trained_run, generation_run], ids=["classification", "generation"])
def test_a_head_that_is_kept_for_other_classes_is_reported(
    run: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(checkpoint=str(run()))
    caplog.clear()
    log_other_classes(config, [str(i) for i in range(10)], "the head")
    assert not caplog.text
    log_other_classes(config, [f"class {i}" for i in range(10)], "the head")
    assert "as many classes, but others or in another order: 0, 1, 2, 3, 4 and 5 more there" in caplog.text


def test_an_image_smaller_than_the_stride_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    check_model(tiny_config(), load_weights=True)
    assert not caplog.text
    check_model(tiny_config(image_size=7), load_weights=True)
    assert "image_size 7 is smaller than the stride of attnet_xxs, 8" in caplog.text


def test_a_run_gives_its_model_channels_and_normalization_with_its_weights(tmp_path: Path) -> None:
    source = train_tiny(tmp_path / "source", mean=(0.2,), std=(0.9,))
    options = {"model": "attnet_s", "model_args": {}, "in_chans": 3, "mean": None, "std": None}
    run = train_tiny(tmp_path / "run", checkpoint=str(source), **options)
    config = json.loads((run / "config.json").read_text())
    assert config["architecture"] == "attnet_xxs"
    assert config["model_args"]["dims"] == TINY_ARGS["dims"]
    assert config["pretrained_cfg"]["mean"] == [0.2]
    assert config["pretrained_cfg"]["std"] == [0.9]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_of_the_release_are_the_start(tmp_path: Path, suffix: str) -> None:
    model = timm.create_model("attnet_xxs", **TINY_ARGS, num_classes=10, in_chans=1)
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()
    }
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    assert not changed(initial_weights(checkpoint=str(path)), state)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_damaged_weights_of_another_run_raise_and_leave_nothing(tmp_path: Path, share: float) -> None:
    source = Path(shutil.copytree(trained_run(), tmp_path / "source"))
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="source"):
        train_tiny(tmp_path / "run", checkpoint=str(source))
    assert not (tmp_path / "run").exists()


def test_weights_of_a_run_without_a_model_raise(tmp_path: Path) -> None:
    source = Path(shutil.copytree(trained_run(), tmp_path / "source"))
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no model yet"):
        train_tiny(tmp_path / "run", checkpoint=str(source))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["soft", "hard", "dkd"])
def test_a_teacher_changes_what_is_learned(tmp_path: Path, plain: Path, kind: str) -> None:
    run = train_tiny(tmp_path / "run", distill=kind, teacher=str(trained_run()))
    assert changed(last_weights(run), last_weights(plain))
    assert set(last_weights(run)) == set(last_weights(plain)), "the teacher is not saved with the student"


def test_a_loss_that_is_not_finite_names_step_and_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is (nan|inf) at step \d+ \(epoch 1\), learning rate \d+",
    ):
        train_tiny(tmp_path / "run", lr=1000, warmup_lr=1000, optimizer="momentum")


def test_poisoned_weights_stop_at_the_first_step(tmp_path: Path) -> None:
    source = Path(shutil.copytree(trained_run(), tmp_path / "source"))
    state = load_file(source / "model.safetensors")
    state["head.fc.bias"][0] = torch.nan
    save_file(state, source / "model.safetensors")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0 "):
        train_tiny(tmp_path / "run", checkpoint=str(source))


def test_repeated_augmentation_and_mixing_train(tmp_path: Path, plain: Path) -> None:
    run = train_tiny(tmp_path / "run", repeats=3, mixup=0.2, cutmix=1.0)
    assert read_rows(run / "metrics.csv")[0]["step"] == read_rows(plain / "metrics.csv")[0]["step"]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_schedule_warms_up_and_falls(tmp_path: Path, schedule: str) -> None:
    run = train_tiny(tmp_path / "run", epochs=3, schedule=schedule, warmup_epochs=1.0)
    rates = [float(row["lr"]) for row in read_rows(run / "metrics.csv")]
    low, high, before_last = 1e-6, 1e-3, 9 / 10  # of ten steps an epoch, the warm-up ends with the eleventh
    assert rates[0] == pytest.approx(low + before_last * (high - low))
    # At steps 20 and 30, one short of the epoch's end: 19 and 29 of 30.
    cosine = [low + (high - low) * (1 + math.cos(math.pi * step / 30)) / 2 for step in (19, 29)]
    assert rates[1:] == pytest.approx(
        {"cosine": cosine, "wsd": [high, rates[2]], "constant": [high, high]}[schedule]
    )
    assert schedule != "wsd" or rates[2] < 0.2 * high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "attnet_t9"}, "timm knows no model 'attnet_t9'"),
        ({"model_args": {"stem": 3}}, "does not take model_args"),
        ({"model_args": {"stem_stride": 3}}, "stem_stride must be 4, 2 or 1"),
        ({"optimizer": "nosuch"}, "nosuch"),
        ({"schedule": "no_such"}, "no_such"),
        pytest.param({"auto_augment": "nosuch"}, "nosuch", id="auto_augment"),
        pytest.param({"schedule": "plateau"}, "plateau", id="plateau"),
        pytest.param({"drop_path_rate": 1.5}, "drop_path_rate", id="drop_path_rate"),
        ({"checkpoint": "none.pth"}, "none.pth"),
        ({"in_chans": 2}, "2"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_an_option_that_does_not_fit_is_named_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_tiny(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_steps_are_those_of_the_training_split(plain: Path) -> None:
    split = json.loads((plain / "split.json").read_text())
    train = Split(DigitsSource(), [int(name) for name in split["train"]])
    assert len(train) // 32 == int(read_rows(plain / "metrics.csv")[0]["step"])


def test_the_input_of_a_run_comes_with_its_weights_unless_chosen(tmp_path: Path) -> None:
    checkpoint = str(trained_run())
    inherited = inherit_config(tiny_config(checkpoint=checkpoint, image_size=32))
    assert inherited.image_size == TINY["image_size"]
    assert inherit_config(tiny_config(checkpoint=checkpoint, image_size=32), {"image_size"}).image_size == 32
    with pytest.raises(ValueError, match="--model attnet_s contradicts"):
        inherit_config(tiny_config(checkpoint=checkpoint, model="attnet_s"), {"model"})
