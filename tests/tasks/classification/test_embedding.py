"""Images as vectors: embeddings and nearest neighbors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import atconv as package
from atconv.analysis.features import pooled_features
from atconv.data.sources.digits import DigitsSource
from atconv.tasks.classification.embedding import Backbone, embed, is_embeddings, nearest, read_embeddings
from atconv.tasks.classification.neighbors import neighbors
from support.image_files import KINDS, saved_image
from support.tiny import atconv, read_rows, trained_run
from support.wds import png, samples, write_shard


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of every kind, and two files that are none."""
    folder = tmp_path_factory.mktemp("images")
    for kind in KINDS:
        saved_image(kind, folder)
    for name in ("a-bad.png", "z-bad.jpg"):
        (folder / name).write_text("text")
    return folder


def own_features(paths: list[str]) -> torch.Tensor:
    """What the classifier of the run's model is given, one image at a time."""
    predictor = package.load(trained_run())
    head, found = predictor.model.head, []
    handle = head.fc.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    with torch.inference_mode():
        for path in paths:
            predictor.model(predictor.transform(predictor.open_image(path))[None])
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_embeddings_are_what_the_classifier_is_given(files: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"features{suffix}"
    ended = atconv("embed", trained_run(), files, "--out", out, "--batch-size=5", "--workers=0")
    assert ended.code == 0, ended.err
    digest = Backbone.open(str(trained_run())).digest
    features, names = read_embeddings(out, digest)
    readable = sorted(str(path) for path in files.iterdir() if "bad" not in path.name)
    assert names == readable
    np.testing.assert_allclose(features, own_features(readable).numpy(), rtol=1e-5, atol=1e-5)
    assert features.dtype == np.float32
    for name in ("a-bad.png", "z-bad.jpg"):
        assert f"left out {files / name}" in ended.err
    assert is_embeddings(out)
    with pytest.raises(ValueError, match=f"of another model: the digest of its weights is {digest}"):
        read_embeddings(out, "0" * 16)


def test_the_order_is_that_of_the_arguments(tmp_path: Path) -> None:
    for i in range(3):
        DigitsSource().read(i, "L").save(tmp_path / f"{i}.png")
    order = [str(tmp_path / f"{i}.png") for i in (2, 0, 1)]
    out = embed(str(trained_run()), order, str(tmp_path / "f.npy"), workers=0)
    assert [row["image"] for row in read_rows(tmp_path / "f.csv")] == order
    np.testing.assert_allclose(np.load(out), own_features(order).numpy(), rtol=1e-5, atol=1e-5)


def test_any_timm_model_gives_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    saved_image("rgba", tmp_path)
    out = tmp_path / "features.npy"
    ended = atconv(
        "embed", "test_resnet", tmp_path / "rgba.png", "--weights", tmp_path / "weights.pth", "--out", out,
        "--workers=0",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert np.load(out).shape == (1, model.num_features)
    for name in ("test_vit", "test_convnext", "attnet_xxs"):
        network = timm.create_model(name, **({"depths": [1] * 4} if "attnet" in name else {})).eval()
        inputs = torch.randn(2, *network.pretrained_cfg["input_size"])
        with torch.inference_mode():
            logits = network.get_classifier()(pooled_features(network, inputs))
            torch.testing.assert_close(logits, network(inputs), rtol=1e-5, atol=1e-5)


def test_a_model_without_pooling_is_rejected() -> None:
    network = timm.create_model("test_convnext", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="global_pool is off"):
        pooled_features(network, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_model"], "timm knows no model"),
        (["runs/no-such"], "no such run folder"),
        (["attnet_xxs"], "has no weights of its own in timm"),
        (["test_resnet", "--weights", "none.pth"], "test_resnet cannot be loaded"),
        (["RUN", "--weights", "none.pth"], "leave none.pth out"),
        (["RUN", "--out", "features.txt"], "must be a .npy or .parquet file"),
        (["RUN", "--out", "there.npy"], "there.npy exists already"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_image("gray", tmp_path)
    (tmp_path / "there.npy").write_text("mine")
    model, *options = arguments
    options = options if "--out" in options else [*options, "--out", "new.npy"]
    ended = atconv("embed", str(trained_run()) if model == "RUN" else model, "gray.png", *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gray.png", "there.npy"]
    assert (tmp_path / "there.npy").read_text() == "mine"


@settings(deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".npy", ".parquet"]))
def test_a_strangers_file_is_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("files") / f"features{suffix}"
    path.write_bytes((b"\x93NUMPY\x01\x00" if suffix == ".npy" else b"PAR1") + content)
    with pytest.raises(ValueError, match=path.name):
        read_embeddings(path, "")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "features.csv").write_text("row,image,model\n0,a.png,0\n")
    with pytest.raises(ValueError, match="is not a file of atconv embed"):
        read_embeddings(tmp_path / "features.npy", "0")


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_neighbors_are_the_rows_of_the_highest_cosine(queries: int, rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(n, 5)).astype(np.float32) for n in (queries, rows))
    similarities, places = nearest(a, b, count)
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    expected = -np.sort(-cosine, axis=1)[:, :count]
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosine, places, 1), expected, atol=1e-6)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scans in two class folders, one of them twice."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(8):
        (folder / f"<{i % 2}>").mkdir(exist_ok=True)
        DigitsSource().read(i, "L").save(folder / f"<{i % 2}>" / f"{i}.png")
    return folder


def test_an_image_is_its_own_nearest_neighbor(colors: Path, tmp_path: Path) -> None:
    query = colors / "<1>" / "3.png"
    ended = atconv(
        "neighbors", trained_run(), query, "--of", colors, "--out", tmp_path / "n", "--count=3", "--workers=0"
    )
    assert ended.code == 0, ended.err
    rows = read_rows(tmp_path / "n" / "neighbors.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert (rows[0]["neighbor"], rows[0]["class"], rows[0]["similarity"]) == ("<1>/3.png", "<1>", "1.0000")
    assert Image.open(tmp_path / "n" / "neighbors.png").width > 300
    embed(str(trained_run()), [str(colors)], str(tmp_path / "all.parquet"), workers=0)
    neighbors(str(trained_run()), [str(query)], str(tmp_path / "all.parquet"), str(tmp_path / "m"), 3)
    again = read_rows(tmp_path / "m" / "neighbors.csv")
    assert [row["similarity"] for row in again] == [row["similarity"] for row in rows]
    assert [row["neighbor"] for row in again] == [str(colors / row["neighbor"]) for row in rows]


def test_samples_without_a_label_are_named_where_neighbors_are_sought(colors: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [*samples(2), *[{"png": png(i)} for i in range(6)]])
    query = colors / "<1>" / "3.png"
    out = tmp_path / "n"
    ended = atconv("neighbors", trained_run(), query, "--of", tmp_path, "--out", out, "--workers=0")
    assert ended.code == 0, ended.err
    assert [f"left out 0.tar/{i:04d}.png: " in ended.err for i in range(2, 8)] == [True] * 5 + [False]
    assert "left out 1 more" in ended.err


def test_embeddings_of_another_model_are_rejected(colors: Path, tmp_path: Path) -> None:
    channels = Backbone.open(str(trained_run())).model.num_features
    np.save(tmp_path / "other.npy", np.ones((1, channels), np.float32))
    (tmp_path / "other.csv").write_text("row,image,model\n0,a.png,0123456789abcdef\n")
    ended = atconv(
        "neighbors",
        trained_run(),
        colors,
        "--of",
        tmp_path / "other.npy",
        "--out",
        tmp_path / "n",
        "--workers=0",
    )
    assert ended.code == 2
    assert "other.npy is of another model: the digest of its weights is 0123456789abcdef" in ended.err
    assert not (tmp_path / "n").exists()


def test_images_that_are_gone_leave_a_gap_in_the_plot(colors: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(colors, tmp_path / "copy"))
    out = embed(str(trained_run()), [str(copy)], str(tmp_path / "all.npy"), workers=0)
    shutil.rmtree(copy)
    query = str(colors / "<1>" / "3.png")
    table = neighbors(str(trained_run()), [query], str(out), str(tmp_path / "n"), 2, workers=0)
    assert len(read_rows(table)) == 2
    assert (tmp_path / "n" / "neighbors.png").is_file()
