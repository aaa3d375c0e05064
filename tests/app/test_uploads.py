"""Files of strangers, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atconv.app.describe import metrics_line, model_line
from atconv.app.uploads import read_upload
from atconv.engine.run import unique_names
from support.tiny import trained_run


def sent(path: Path, name: str | None = None) -> dict[str, Any]:
    return {"path": str(path), "orig_name": name}


def test_an_image_is_read_upright_and_in_color(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.tif"
    stored = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(stored).save(file, exif=exif)
    image, about = read_upload(sent(file), 1)
    assert (image.size, image.mode, about) == ((6, 8), "RGB", "")
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rot90(stored, -1))


def test_a_large_image_is_made_smaller_and_that_is_said(tmp_path: Path) -> None:
    Image.new("L", (4096, 1000)).save(tmp_path / "wide.png")
    image, about = read_upload(sent(tmp_path / "wide.png"), 5)
    assert image.size == (2048, 500)
    assert about == "made smaller, from 4096 × 1000 to 2048 × 500 pixels"


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (60_000, 2_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"mine\.png: 60000 × 2000 pixels are 120 megapixels; up to 50"):
        read_upload(sent(tmp_path / "bomb.png", "/tmp/../mine.png"), 50)


NO_UPLOADS = [None, 3, "a.png", [], {}, {"path": None}, {"path": ["a"]}, {"path": "/"}, {"path": "a\0b"}]


@pytest.mark.parametrize("upload", NO_UPLOADS, ids=map(repr, NO_UPLOADS))
def test_what_is_no_upload_is_rejected(upload: Any) -> None:
    with pytest.raises(ValueError, match=r"no image was sent|No such file|null byte|directory"):
        read_upload(upload, 1)


def test_runs_have_the_shortest_names_that_differ() -> None:
    names = unique_names(["runs/a", "other/runs/b"])
    assert names == {"a": Path("runs/a"), "b": Path("other/runs/b")}
    assert list(unique_names(["x/a", "y/a"])) == ["x/a", "y/a"]
    assert unique_names({"mine": "x/a"}) == {"mine": Path("x/a")}
    with pytest.raises(ValueError, match="a run is named twice"):
        unique_names(["x/a", "x/../x/a"])


def test_the_lines_about_a_run_are_its_own() -> None:
    import atconv

    predictor = atconv.load(trained_run())
    parameters = sum(p.numel() for p in predictor.model.parameters())
    assert model_line(predictor) == f"attnet_xxs, {parameters / 1e6:.2g} M parameters, 10 classes"
    top1 = predictor.evaluate(split="test", workers=0).top1
    assert metrics_line(predictor).startswith(f"top-1 {top1:.1f} %, top-5 ")
    images = len(json.loads((trained_run() / "split.json").read_text())["test"])
    assert metrics_line(predictor).endswith(f"(test split of {images} images)")


def test_examples_are_of_the_validation_split(tmp_path: Path) -> None:
    import atconv

    predictor: Any = atconv.load(trained_run())
    _, split = predictor.choose_split(None, "val")
    images = {split.read(i, "RGB").tobytes() for i in range(len(split))}
    examples = predictor.examples(5)
    assert len(examples) == 5
    assert {image.tobytes() for image in examples} <= images
