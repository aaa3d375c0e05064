"""Processes that share a batch, or the weights, train what one process trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from support.tiny import read_rows, start_process
from support.tiny_sit import FAMILIES, tiny_run_options, tiny_sit, train_tiny_sit
from support.torchrun import in_processes, start_processes

BATCH, STEPS = 32, 20
# Adam divides gradients by their size: with its usual eps it blows rounding up where they are near zero.
CHANGES = dict(
    epochs=2,
    eps=1e-4,
    lr=4e-3,
    global_batch_size=BATCH,
    ema_decay=0.0,
    label_dropout=0.2,
    model="sit_hybrid_s_2",
)


def weights(run: Path) -> dict[str, Tensor]:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{STEPS}"
    return load_checkpoint(newest)["model"]


def assert_same_weights(run: Path, expected: Path) -> None:
    ours, theirs = weights(run), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny_sit(tmp_path_factory.mktemp("one") / "run", batch_size=BATCH, **CHANGES)


def options_for(run: Path, **changes: Any) -> list[str]:
    return ["digits", *tiny_run_options(batch_size=BATCH // 2, **changes), f"--out={run}"]


def train_in_two_processes(run: Path, **changes: Any) -> str:
    """Returns what they printed."""
    ended = in_processes("generate", "train", *options_for(run, **changes))
    assert ended.code == 0, ended.err
    return ended.out


def test_two_gloo_processes_train_the_weights_of_one(tmp_path: Path, one_process: Path) -> None:
    run = tmp_path / "run"
    printed = train_in_two_processes(run, **CHANGES)
    assert "16 images × 2 process(es) × 1 micro-batch(es)" in printed
    assert printed.count("epoch   1/2") == 1, "only the main process speaks"
    assert_same_weights(run, one_process)
    for ours, theirs in zip(
        read_rows(run / "metrics.csv"), read_rows(one_process / "metrics.csv"), strict=True
    ):
        for name in ("train_loss", "val_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-5), name


@pytest.mark.slow
def test_two_processes_align_with_an_encoder_as_one_does(tmp_path: Path) -> None:
    changes = CHANGES | dict(repa_encoder="vit_tiny_patch16_224", repa_weights="none", repa_block=1)
    train_in_two_processes(tmp_path / "two", **changes)
    one = train_tiny_sit(tmp_path / "one", batch_size=BATCH, **changes)
    assert_same_weights(tmp_path / "two", one)


def test_two_accumulated_micro_batches_train_the_weights_of_one(tmp_path: Path, one_process: Path) -> None:
    run = train_tiny_sit(tmp_path / "run", batch_size=BATCH // 2, **CHANGES)
    assert_same_weights(run, one_process)


def test_the_weights_that_are_compared_were_trained(tmp_path: Path, one_process: Path) -> None:
    run = train_tiny_sit(tmp_path / "run", batch_size=BATCH, **(CHANGES | {"label_dropout": 0.3}))
    with pytest.raises(AssertionError):
        assert_same_weights(run, one_process)


# Sharded weights.

SHARDED = CHANGES | dict(ema_decay=0.9, ema_warmup=False, clip_grad=1.0)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two processes trained, each holding half of every weight."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    train_in_two_processes(run, shard=True, **SHARDED)
    return run


def test_a_sharded_run_trains_the_weights_of_one_process(sharded: Path, tmp_path: Path) -> None:
    one = train_tiny_sit(tmp_path / "one", batch_size=BATCH, **SHARDED)
    assert_same_weights(sharded, one)
    kept = "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(sharded / kept), load_file(one / kept)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_sharded_run_resumes_to_the_same_end(sharded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = options_for(run, shard=True, checkpoint_steps=3, **SHARDED)
    processes = start_processes("generate", "train", *options, output=tmp_path)
    while processes[0].is_alive() and latest_checkpoint(run / "checkpoints") is None:
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    killed_at = latest_checkpoint(run / "checkpoints")
    assert killed_at is not None
    assert killed_at.name != f"step-{STEPS}"
    ended = in_processes("generate", "train", "--resume", run)
    assert ended.code == 0, ended.err
    ours, theirs = weights(run), weights(sharded)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is one: start with torchrun"):
        train_tiny_sit(tmp_path / "run", shard=True)
    with pytest.raises(ValueError, match="shard needs ema_decay"):
        train_tiny_sit(tmp_path / "run", shard=True, ema_decay=0.0)
    assert not (tmp_path / "run").exists()


def train_twice(model: nn.Module, part: slice) -> Tensor:
    """Two AdamW steps on this part of a batch of four; returns the loss before the second."""
    rng = torch.Generator().manual_seed(1)
    x, target = torch.randn(2, 4, 4, 8, 8, generator=rng)[:, part]
    t, labels = torch.rand(4, generator=rng)[part], torch.tensor([1, 2, 10, 3])[part]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    for _ in range(2):
        loss = ((model(x, t, labels) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def train_sharded(family: str, rank: int, folder: Path) -> None:
    """One of two processes; the first writes the loss and the full weights."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = tiny_sit(token_mixer=family)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    loss = train_twice(model, slice(rank, 4, 2))
    dist.all_reduce(loss)
    full = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    if rank == 0:
        torch.save((loss / 2, full), folder / "result")
    dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_weights_learn_what_full_ones_learn(family: str, tmp_path: Path) -> None:
    processes = [start_process(train_sharded, family, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    loss, full = torch.load(tmp_path / "result")
    model = tiny_sit(token_mixer=family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected_loss = train_twice(model, slice(0, 4))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(full[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(tensor, before[name]), name
