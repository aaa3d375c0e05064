"""Fine-tuning in stages: the head first, then the backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.tasks.classification.unfreezing import Unfreezing
from support.tiny import (
    TINY_ARGS,
    KillAt,
    atconv,
    tiny_config,
    tiny_options,
    trained_run,
)
from support.torchrun import in_processes

STAGES = ("stages.3.", "stages.2.", "stages.1.", "stages.0.", "stem.")


def weights(run: Path) -> dict[str, Tensor]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state: dict[str, Tensor] = load_checkpoint(newest)["model"]
    return state


def moved(run: Path) -> set[str]:
    """Tensors that are not those of the run it started from; buffers of batch norm too."""
    start = load_file(trained_run() / "model.safetensors")
    return {name for name, tensor in weights(run).items() if not torch.equal(tensor, start[name])}


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_stages_are_added_from_the_last_to_the_first() -> None:
    model = timm.create_model("attnet_xxs", **TINY_ARGS)
    unfreezing = Unfreezing(model, head_epochs=2, unfreeze_epochs=3)
    everything = trainable(model)
    for epoch, count in {0: 0, 1: 0, 2: 1, 4: 1, 5: 2, 8: 3, 11: 4, 14: 5, 99: 5, 3: 1}.items():
        unfreezing.apply(epoch)
        frozen = everything - trainable(model)
        assert frozen == {name for name in everything if name.startswith(STAGES[count:])}, epoch
    assert "from epoch 15 on" in unfreezing.describe(15)
    assert "1 of 5 stages never train: that takes 15 epochs" in unfreezing.describe(14)
    at_once = Unfreezing(model, head_epochs=1)
    at_once.apply(0)
    assert all(name.startswith("head.") for name in trainable(model))
    at_once.apply(1)
    assert trainable(model) == everything


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_models_of_timm_are_unfrozen_too(name: str) -> None:
    model = timm.create_model(name)
    everything, unfreezing = trainable(model), Unfreezing(model, 1, 1)
    unfreezing.apply(0)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == head
    assert len(unfreezing.stages) > 1
    unfreezing.apply(len(unfreezing.stages))
    assert trainable(model) == everything


def test_the_backbone_stays_bit_for_bit_and_a_resume_crosses_the_border(tmp_path: Path) -> None:
    """Weights and statistics of batch norm, of the model and of its average."""
    options = tiny_options(
        checkpoint=str(trained_run()), head_epochs=1, unfreeze_epochs=1, epochs=3, weight_decay=0.5,
        drop_path_rate=0.1, clip_grad=1.0,
    )  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    border = KillAt("torch.optim.AdamW.step", nth=11)
    assert atconv("train", "digits", *options, f"--out={run}", kill_at=border).code < 0
    after_head = moved(run)
    assert after_head
    assert all(name.startswith("head.") for name in after_head)
    best, start = load_file(run / "model.safetensors"), load_file(trained_run() / "model.safetensors")
    assert all(torch.equal(best[n], start[n]) for n in best if not n.startswith("head."))
    assert atconv("train", "digits", *options, f"--out={whole}").code == 0
    for stage in ("stages.3.", "stages.2."):
        assert {name for name in moved(whole) if name.startswith(stage) and name.endswith("running_mean")}
    assert not {name for name in moved(whole) if name.startswith(STAGES[2:])}
    assert atconv("train", "--resume", run).code == 0
    for name in ("model.safetensors", "checkpoints/step-30/state.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_several_processes_freeze_alike(tmp_path: Path) -> None:
    options = tiny_options(
        checkpoint=str(trained_run()), head_epochs=1, unfreeze_epochs=1, epochs=2, batch_size=16
    )
    ended = in_processes("train", "digits", *options, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    names = moved(tmp_path / "run")
    assert any(name.startswith("stages.3.") for name in names)
    assert all(name.startswith(("head.", "stages.3.")) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_epochs": 1}, "head_epochs must be less than epochs"),
        ({"unfreeze_epochs": 1}, "set head_epochs too"),
        ({"head_epochs": 1, "epochs": 3, "shard": True}, "do not go together"),
        ({"head_epochs": 1, "epochs": 3, "freeze_backbone": True}, "freeze_backbone and head_epochs do"),
        ({"head_epochs": -1}, "head_epochs must not be negative"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_a_recipes_head_epochs_give_way_to_fewer_epochs_and_a_frozen_backbone() -> None:
    command = ("train", "--config=finetune", "--print-config")
    assert "\nhead_epochs: 2\n" in atconv(*command).out
    assert "\nhead_epochs: 0\n" in atconv(*command, "--epochs=1").out
    assert "\nhead_epochs: 0\n" in atconv(*command, "--freeze-backbone").out
    assert atconv(*command, "--epochs=2", "--head-epochs=2").code == 2
