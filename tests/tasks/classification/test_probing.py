"""kNN and a linear probe on the features of a backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from atconv.data.transforms import EvalTransform
from atconv.tasks.classification.embedding import Backbone
from atconv.tasks.classification.probing import _fit_linear, _neighbor_shares, probe
from support.tiny import atconv, image_folder, trained_run


class Pixels(torch.nn.Module):
    """A backbone whose features are the mean color of each quarter of the image."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2)

    def forward_head(self, features: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return features.flatten(1)


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = EvalTransform({"input_size": (3, 8, 8), "crop_pct": 1.0})
    backbone = Backbone("pixels", Pixels(), transform, torch.device("cpu"))
    monkeypatch.setattr(Backbone, "open", classmethod(lambda cls, *arguments: backbone))


def separable(root: Path, count: int = 30) -> Path:
    """Three classes by their color, with noise."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            image[..., label] += 150
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def test_separable_classes_are_reported_apart(pixels: None, tmp_path: Path) -> None:
    found = probe("pixels", str(separable(tmp_path / "data")), str(tmp_path / "out"), workers=0)
    assert {name: m.top1 for name, m in found.metrics.items()} == {
        "1-NN": 100, "5-NN": 100, "20-NN": 100, "linear": 100,
    }  # fmt: skip
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert saved["metrics"]["linear"]["top1"] == 100
    low, high = saved["metrics"]["linear"]["top1_interval"]
    images = saved["metrics"]["linear"]["images"]
    assert (low, high) == (pytest.approx(100 * images / (images + 1.96**2), abs=0.1), 100)
    assert (tmp_path / "out" / "split.json").is_file()


def test_noise_is_not_told_apart(pixels: None, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"a": 60, "b": 60})
    found = probe("pixels", str(data), str(tmp_path / "out"), workers=0)
    for metrics in found.metrics.values():
        low, high = metrics.top1_interval
        assert low < 50 < high


def planted(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Classes along one rotated direction, among others with more spread: what a line finds and neighbors do
    not."""
    rotation, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(20, 20)))
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, 20)) * 3
    features[:, 0] = np.where(labels == 1, 1.0, -1.0) + 0.3 * rng.normal(size=count)
    return (features @ rotation).astype(np.float32), labels


def test_a_line_finds_what_is_hidden_from_neighbors() -> None:
    rng = np.random.default_rng(0)
    (train, labels), (val, val_labels), (test, wanted) = (planted(rng, n) for n in (600, 200, 400))
    strength, shares = _fit_linear(train, labels, val, val_labels, test, 2)
    linear = (shares.argmax(1) == wanted).mean()
    knn = _neighbor_shares(train, labels, test, 2)
    scores = {name: (each.argmax(1) == wanted).mean() for name, each in knn.items()}
    assert linear > 0.97
    assert linear >= max(scores.values()) + 0.1
    assert strength in {10.0**power for power in range(-4, 4)}


def test_neighbors_vote_and_the_nearer_win_a_tie() -> None:
    angles = np.deg2rad([0, 10, 20, 30, 40, 90, 100])
    train = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([0, 1, 1, 2, 2, 0, 0])
    shares = _neighbor_shares(train, labels, train[:1], 3)
    assert shares["1-NN"].argmax(1).tolist() == [0]
    assert shares["5-NN"].argmax(1).tolist() == [1]  # two of 1 are nearer than two of 2
    assert "20-NN" not in shares
    np.testing.assert_allclose(shares["5-NN"], [[0.2, 0.4, 0.4]], atol=1e-3)


def test_a_run_is_probed_on_its_own_splits(tmp_path: Path) -> None:
    ended = atconv("probe", trained_run(), "digits", "--out", tmp_path / "out", "--workers=0")
    assert ended.code == 0, ended.err
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    split = json.loads((trained_run() / "split.json").read_text())
    assert (saved["train_images"], saved["metrics"]["linear"]["images"]) == (
        len(split["train"]),
        len(split["test"]),
    )
    assert saved["split"] == "test"
    assert saved["metrics"]["linear"]["top1"] > 60
    assert not (tmp_path / "out" / "split.json").exists()
    assert "20-NN" in ended.out + ended.err
    again = atconv("probe", trained_run(), "digits", "--out", tmp_path / "out", "--workers=0")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("data", "message"),
    [("one", "has 1 class"), ("nowhere", "does not exist")],
)
def test_data_that_does_not_fit_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "one", {"a": 4})
    ended = atconv("probe", trained_run(), data, "--workers=0")
    assert ended.code == 2
    assert message in ended.err
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == ["one"]
    assert not any((tmp_path / "runs").glob("*"))


def test_several_labels_an_image_are_rejected(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", {"a": 4})
    (tmp_path / "data" / "labels.csv").write_text(
        "image,labels\n" + "".join(f"a/{i}.png,{'x;y' if i else 'x'}\n" for i in range(4))
    )
    with pytest.raises(ValueError, match="several labels an image"):
        probe(str(trained_run()), str(tmp_path / "data"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
