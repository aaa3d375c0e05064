from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState

from atconv.engine import devices
from atconv.engine.config import TrainConfig
from atconv.engine.distributed import make_accelerator
from atconv.ops import processor
from support.tiny import reset_accelerate


@pytest.fixture(autouse=True)
def _new_accelerate() -> Iterator[None]:
    reset_accelerate()
    yield
    reset_accelerate()


def test_one_process_on_the_cpu(tmp_path: object) -> None:
    accelerator = make_accelerator(TrainConfig(device="cpu", tracker="none"), str(tmp_path))
    assert (accelerator.device.type, accelerator.num_processes) == ("cpu", 1)
    assert accelerator.mixed_precision == "no"


@pytest.mark.parametrize("asked", ["fp16", "bf16"])
@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_cpu_trains_in_the_precision_that_it_has_and_says_so(
    asked: str, has_bf16: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    config = TrainConfig(device="cpu", tracker="none", precision=asked)
    taken = "bf16" if has_bf16 else "fp32"
    with caplog.at_level("INFO", "atconv"):
        mixed = make_accelerator(config, str(tmp_path)).mixed_precision
    assert mixed == ("bf16" if has_bf16 else "no")
    expected = [] if asked == taken else [f"this CPU has no fast {asked}: training in {taken}"]
    assert caplog.messages == expected


@pytest.mark.parametrize("has_instructions", [False, True])
def test_avx512_alone_is_not_taken_for_bf16(has_instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert processor.cpu_has_bf16() is has_instructions


@pytest.mark.parametrize("has_mkldnn", [False, True])
def test_other_processors_ask_onednn_where_torch_has_it(
    has_mkldnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_mkldnn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert processor.cpu_has_bf16() is has_mkldnn


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_rejected(tmp_path: object) -> None:
    with pytest.raises(ValueError, match=r"device cuda is not available here \((cpu|mps) is\)"):
        make_accelerator(TrainConfig(device="cuda", tracker="none"), str(tmp_path))


def test_a_launcher_that_accelerate_did_not_see_is_an_error(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState(cpu=True)  # accelerate believes to be alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="started 2 processes but accelerate sees 1"):
        make_accelerator(TrainConfig(device="cpu", tracker="none"), str(tmp_path))


def test_another_launchers_fsdp_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="start with torchrun and give --shard"):
        make_accelerator(TrainConfig(device="cpu", tracker="none"), str(tmp_path))
