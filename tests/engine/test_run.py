from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import atconv
from atconv.data.sources.digits import DigitsSource
from atconv.data.unreadable import SkippedFile, save_skipped
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.engine.run import Run
from support.tiny import TINY_ARGS, read_rows, train_tiny, trained_run

NEW_PROCESS = """
import sys, torch, timm, json
import atconv
run, images, logits = sys.argv[1:]
model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
with torch.inference_mode():
    torch.save(model(torch.load(images)), logits)
print(json.dumps(model.pretrained_cfg))
"""


def test_timm_opens_a_run_in_a_new_process_with_the_same_logits(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", crop_pct=0.8, mean=(0.3,), std=(0.7,), interpolation="bilinear")
    predictor = atconv.load(run)
    source = DigitsSource()
    images = torch.stack([predictor.transform(source.read(i, "L")) for i in range(8)])
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(run), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    answer = subprocess.check_output([sys.executable, "-c", NEW_PROCESS, *arguments], text=True)
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), predictor.model(images))
    pretrained = json.loads(answer)
    assert pretrained["input_size"] == [1, 8, 8]
    assert pretrained["mean"] == [0.3]
    assert pretrained["std"] == [0.7]
    assert pretrained["crop_pct"] == 0.8
    assert pretrained["interpolation"] == "bilinear"
    assert pretrained["label_names"] == predictor.classes == [str(i) for i in range(10)]


@pytest.mark.parametrize("lr", [3e-3, 1e-6], ids=["learns", "stands still"])
@pytest.mark.slow
def test_the_best_weights_are_the_average_of_the_best_epoch(tmp_path: Path, lr: float) -> None:
    """The last of the best epochs: where validation stands still, training longer does no harm."""
    run = train_tiny(tmp_path / "run", epochs=3, lr=lr, warmup_lr=lr)
    scores = [float(row["val_top1"]) for row in read_rows(run / "metrics.csv")]
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state, saved = load_checkpoint(newest), load_file(run / "model.safetensors")
    last_is_best = scores[-1] == max(scores)
    assert all(torch.equal(saved[name], t) for name, t in state["ema"].items()) == last_is_best
    assert not all(torch.equal(saved[name], t) for name, t in state["model"].items())
    best = json.loads((run / "metrics.json").read_text())["best_epoch"]
    assert best == len(scores) - scores[::-1].index(max(scores))


def test_a_run_is_loaded_for_use() -> None:
    predictor = atconv.load(trained_run())
    model: Any = predictor.model
    assert not model.training
    assert len(predictor.classes) == model.num_classes == 10
    image = Image.fromarray(np.zeros((30, 20, 4), np.uint8))
    assert predictor.transform(image).shape == (1, 8, 8)
    assert model(predictor.transform(image)[None]).shape == (1, 10)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run(), tmp_path / "run"))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such run folder: .*none"):
        atconv.load(tmp_path / "none")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run: it has neither"):
        atconv.load(tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_run_without_a_model_says_how_to_continue(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(ValueError, match=f"has no model yet.*--resume {copied}"):
        atconv.load(copied)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_model_is_called_damaged(copied: Path, name: str, share: float) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"run.* is damaged"):
        atconv.load(copied)


def test_weights_of_another_model_are_called_damaged(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    state.pop("head.fc.weight")
    save_file(state, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"is damaged"):
        atconv.load(copied)


def test_a_model_without_class_names_is_no_classification_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config.pop("label_names")
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its config\.json names no classes"):
        atconv.load(copied)


def test_a_new_run_takes_an_empty_folder_or_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty").path.is_dir()
    assert Run.create(tmp_path / "deep" / "new").path.is_dir()


def test_a_new_run_takes_the_place_of_a_rejected_one_and_of_no_file_of_that_name(tmp_path: Path) -> None:
    save_skipped(tmp_path / "skipped.csv", [SkippedFile("train", "a.png", "truncated")], 9, 1.0)
    Run.create(tmp_path)
    for mine in ("", "mine\n", "file,reason,split\n", "split,file,reason,note\n"):
        (tmp_path / "skipped.csv").write_text(mine)
        with pytest.raises(ValueError, match="exists already: it is not the folder of a run"):
            Run.create(tmp_path)
        assert (tmp_path / "skipped.csv").read_text() == mine


def test_a_new_run_never_touches_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ValueError, match=f"exists already: resume it with --resume {tmp_path}"):
        Run.create(tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        Run.create(tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_the_folder_holds_what_the_documentation_says() -> None:
    run = trained_run()
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.yaml",
        "split.json",
        "metrics.csv",
        "inhibition.csv",
        "checkpoints",
        "config.json",
    }
    assert names >= {"model.safetensors", "metrics.json", "curves.png", "confusion.png", "mistakes.png"}
    assert not {name for name in names if name.startswith(".")}
    assert json.loads((run / "config.json").read_text())["model_args"]["depths"] == TINY_ARGS["depths"]
