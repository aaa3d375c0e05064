from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import atconv
from atconv.models.attnet import AttNet
from atconv.models.release import read_checkpoint, to_attnet
from support.helpers import release_state

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return release_state("attnet_xxs", seed=1)


@pytest.fixture
def model() -> AttNet:
    return timm.create_model("attnet_xxs")


def checkpoint(state: State, ema: State | None = None, **entries: Any) -> dict[str, Any]:
    """A training checkpoint with all that the release's files hold."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [4e-3]},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "growth_tracker": 0},
        "args": argparse.Namespace(model="attnet", lr=4e-3, opt_betas=None, data=["imagenet"]),
        **({} if ema is None else {"model_ema": ema}),
        **entries,
    }


def saved(content: Any, folder: Path, name: str = "checkpoint.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def assert_holds(model: AttNet, state: State, without: str = "\0") -> None:
    """The model's tensors are those of a release state dict, except under a prefix."""
    expected = to_attnet(state)
    for name, tensor in model.state_dict().items():
        if not name.startswith(without):
            assert torch.equal(tensor, expected[name]), name


@contextmanager
def unchanged(model: AttNet) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# What loads.


@pytest.mark.parametrize("zipped", [True, False])
def test_model_is_loaded_by_default_and_ema_by_choice(
    model: AttNet, state: State, zipped: bool, tmp_path: Path
) -> None:
    ema, path = release_state("attnet_xxs", seed=2), tmp_path / "checkpoint.pth"
    torch.save(checkpoint(state, ema), path, _use_new_zipfile_serialization=zipped)
    atconv.load_release(model, path)
    assert_holds(model, state)
    atconv.load_release(model, path, use_ema=True)
    assert_holds(model, ema)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_bare_state_dicts_and_prefixes(
    model: AttNet, state: State, prefix: str, suffix: str, tmp_path: Path
) -> None:
    path, prefixed = tmp_path / f"weights.{suffix}", {prefix + name: t for name, t in state.items()}
    (save_file if suffix == "safetensors" else torch.save)(prefixed, path)
    atconv.load_release(model, str(path))
    assert_holds(model, state)


def test_prefixes_inside_a_checkpoint(model: AttNet, state: State, tmp_path: Path) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    atconv.load_release(model, saved(checkpoint({}, prefixed, model=prefixed), tmp_path))
    assert_holds(model, state)


def test_our_own_names_load_too(model: AttNet, state: State, tmp_path: Path) -> None:
    atconv.load_release(model, saved(to_attnet(state), tmp_path))
    assert_holds(model, state)


@pytest.mark.parametrize("classes", [10, 0])
def test_head_starts_new_for_other_classes(
    state: State, classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("attnet_xxs", num_classes=classes)
    path = saved(checkpoint(state), tmp_path)
    head = {name: t.clone() for name, t in model.state_dict().items() if name.startswith("head.fc")}
    with caplog.at_level(logging.WARNING):
        atconv.load_release(model, path)
    assert_holds(model, state, without="head.fc")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in head.items())
    assert (str(path) in caplog.text and "newly initialized" in caplog.text) == (classes > 0)


def test_fitting_head_loads_without_a_warning(
    model: AttNet, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        atconv.load_release(model, saved(checkpoint(state), tmp_path))
    assert not caplog.records


def test_renaming_keeps_every_tensor(state: State) -> None:
    renamed = to_attnet(state)
    split = sum(".fc1." in name for name in state)  # gate and value are one layer there, two here
    assert len(renamed) == len(state) + split
    values = [
        torch.cat([t.flatten() for t in tensors.values()]).sort().values for tensors in (renamed, state)
    ]
    assert torch.equal(*values)
    assert to_attnet(renamed).keys() == renamed.keys()


# What is rejected. The model stays as it was.


class Harmful:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
        return open, (str(self.victim), "w")


def test_harmful_file_would_do_harm(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(tmp_path / "victim"))).close()
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_no_object_of_a_file_is_built(model: AttNet, state: State, writer: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "checkpoint.pth"
    content = checkpoint(state, args=Harmful(victim))
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"model": {}, "args": Harmful(victim)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with unchanged(model), pytest.raises(ValueError, match=r"cannot be read|can be read safely"):
        atconv.load_release(model, path)
    assert not victim.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"hello world\n",
        b"<!DOCTYPE html><html>404</html>",
        b'{"message": "Not Found"}',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b".hidden text",
        b"0 0 0\n",
    ],
    ids=["empty", "newline", "text", "html", "json", "lfs pointer", "dot", "zeros"],
)
def test_other_files_are_rejected(model: AttNet, content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with unchanged(model), pytest.raises(ValueError, match=re.escape(str(path))):
        atconv.load_release(model, path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(deadline=None, max_examples=60)
@given(fraction=st.floats(0, 0.999))
def test_truncated_files_are_rejected(
    kind: str, fraction: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / ("full.safetensors" if kind == "safetensors" else "full.pth")
    if kind == "safetensors":
        save_file({"stem.conv1.weight": torch.ones(16, 3, 3, 3)}, path)
    else:
        content = checkpoint({"stem.conv1.weight": torch.ones(16, 3, 3, 3)})
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(path)


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=60))
def test_random_bytes_are_rejected(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(path)


def test_truncated_release_file_leaves_the_model_alone(model: AttNet, state: State, tmp_path: Path) -> None:
    path = saved(checkpoint(state), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with unchanged(model), pytest.raises(ValueError, match="truncated"):
        atconv.load_release(model, path)


def test_other_variant_is_named_with_the_first_mismatch(model: AttNet, tmp_path: Path) -> None:
    path = saved(checkpoint(release_state("attnet_xs")), tmp_path)
    with unchanged(model), pytest.raises(ValueError, match="does not fit this model") as raised:
        atconv.load_release(model, path)
    message = str(raised.value)
    assert "stem.conv1.weight is (20, 3, 3, 3) in the file and (16, 3, 3, 3) in the model" in message
    assert "It fits attnet_xs" in message
    assert "timm.create_model('attnet_xs')" in message


def test_variant_that_fits_is_found_whatever_the_classes(state: State, tmp_path: Path) -> None:
    model = timm.create_model("attnet_xs", num_classes=10)
    with unchanged(model), pytest.raises(ValueError, match=r"It fits attnet_xxs \(in_chans=3\)"):
        atconv.load_release(model, saved(state, tmp_path))


def test_model_of_other_image_channels_is_rejected(state: State, tmp_path: Path) -> None:
    model = timm.create_model("attnet_xxs", in_chans=1)
    with unchanged(model), pytest.raises(ValueError, match=r"It fits attnet_xxs \(in_chans=3\)"):
        atconv.load_release(model, saved(state, tmp_path))


def test_missing_and_additional_tensors_are_named(model: AttNet, state: State, tmp_path: Path) -> None:
    short = {name: t for name, t in state.items() if name != "stages.1.0.token_mixer.difference_control"}
    missing = r"stages.1.blocks.0.token_mixer.alpha \(64,\) is missing from the file.*fits none of the seven"
    with unchanged(model), pytest.raises(ValueError, match=missing):
        atconv.load_release(model, saved(short, tmp_path))
    long = {**state, "stages.0.0.layer_scale_1.gamma": torch.ones(32)}
    additional = r"stages.0.blocks.0.ls1.gamma \(32,\) is not in the model"
    with unchanged(model), pytest.raises(ValueError, match=additional):
        atconv.load_release(model, saved(long, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(3)},
            "It is not an AttNet checkpoint",
        ),
        ({"stem.conv1.weight": torch.ones(3)}, "It is not an AttNet checkpoint"),
        ({}, "is not a checkpoint"),
        ({"model": {}}, "is not a checkpoint"),
        ({"epoch": 3, "loss": 0.5}, r"is not a checkpoint: it has keys \['epoch', 'loss'\]"),
        ({"state_dict": {"weight": torch.ones(3)}}, r"is not a checkpoint: it has keys \['state_dict'\]"),
        ([torch.ones(3)], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
    ],
)
def test_what_is_no_attnet_checkpoint_is_rejected(
    model: AttNet, content: Any, message: str, tmp_path: Path
) -> None:
    path = saved(content, tmp_path)
    with unchanged(model), pytest.raises(ValueError, match=message) as raised:
        atconv.load_release(model, path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [{1: torch.ones(3)}, {"head.weight": torch.tensor(1.0)}, {"head.weight": torch.ones(0)}],
    ids=["names are numbers", "scalar head", "empty head"],
)
def test_odd_state_dicts_are_rejected(model: AttNet, content: Any, tmp_path: Path) -> None:
    with unchanged(model), pytest.raises(ValueError, match="not"):
        atconv.load_release(model, saved(content, tmp_path))


def test_missing_ema_is_said(model: AttNet, state: State, tmp_path: Path) -> None:
    with unchanged(model), pytest.raises(ValueError, match=r"no weights under 'model_ema' or 'ema', only"):
        atconv.load_release(model, saved(checkpoint(state), tmp_path), use_ema=True)
    with unchanged(model), pytest.raises(ValueError, match="bare state dict: it has no EMA weights"):
        atconv.load_release(model, saved(state, tmp_path), use_ema=True)


def test_other_choice_of_weights_is_rejected(model: AttNet, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="use_ema must be True, False or None, got 'best'"):
        atconv.load_release(model, tmp_path / "any.pth", use_ema="best")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_file_and_folder_are_said(model: AttNet, suffix: str, tmp_path: Path) -> None:
    for path in (tmp_path / f"none.{suffix}", tmp_path):
        with (
            unchanged(model),
            pytest.raises(FileNotFoundError, match=re.escape(f"no such checkpoint file: {path}")),
        ):
            atconv.load_release(model, path)


class _Foreign:
    """A class that no checkpoint may build."""


def test_a_file_with_foreign_objects_names_them(tmp_path: Path) -> None:
    torch.save({"model": {}, "extra": _Foreign()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"it holds [\w.]*_Foreign;") as caught:
        atconv.load_release(timm.create_model("attnet_xxs"), tmp_path / "bad.pth")
    assert "\x1b" not in str(caught.value)


def test_a_rejected_file_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"conv1.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not an AttNet"):
        atconv.load_release(timm.create_model("attnet_xxs"), tmp_path / "other.pth")
    assert not caplog.records
