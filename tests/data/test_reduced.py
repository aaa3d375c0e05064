"""JPEGs that are decoded no larger than their crop needs: the same crops, and nearly the same pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from atconv.data import reduced
from atconv.data.formats import open_sources
from atconv.data.images import PrepareImage, opened_image, read_image
from atconv.data.loaders import EpochBatches, train_loader
from atconv.data.reduced import Cut, CutImage
from atconv.data.sources.pack import pack_folder
from atconv.data.splits import Split
from atconv.data.transforms import EvalTransform
from atconv.engine.batch_plan import plan_batches
from atconv.engine.rng import seeded
from atconv.tasks import load
from atconv.tasks.classification.augmentation import reduced_crop, train_transform
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.data import data_config
from support.tiny import read_rows, tiny_config, train_tiny
from support.wds import write_shard

MAX_DIFFERENCE = 4.0
"""mean over a crop of a photograph, of 255"""


def file_of(image: Image.Image, kind: str = "JPEG", orientation: int = 1, **options: Any) -> io.BytesIO:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, kind, exif=exif, **options)
    return content


@pytest.fixture(scope="module")
def photos() -> list[io.BytesIO]:
    """Two photographs of 640 × 427 pixels."""
    return [file_of(Image.fromarray(image), quality=90) for image in load_sample_images().images]


def cut(step: CutImage, file: io.BytesIO) -> Image.Image:
    file.seek(0)
    with opened_image(file) as image:
        return step(image)


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Width and height, upright, of the images that were decoded."""
    sizes: list[tuple[int, int]] = []

    def upright(image: Image.Image, mode: Any) -> Image.Image:
        turned = original(image, mode)
        sizes.append(turned.size)
        return turned

    original = reduced.upright
    monkeypatch.setattr(reduced, "upright", upright)
    return sizes


def test_training_crops_of_photographs_are_those_of_full_decoding(
    photos: list[io.BytesIO], decoded: list[tuple[int, int]]
) -> None:
    config = ClassificationConfig(image_size=48, interpolation="random")
    full = train_transform(config).transforms[0]  # type: ignore[attr-defined]
    step, _ = reduced_crop(train_transform(config), 3)
    for photo in photos:
        whole = read_image(photo)
        differences = []
        for seed in range(40):
            with seeded(seed):
                expected = full(whole)
            with seeded(seed):
                differences.append(difference(cut(step, photo), expected))
        assert max(differences) < MAX_DIFFERENCE
        assert sum(differences) / 40 < MAX_DIFFERENCE / 2
    assert {640 / width for width, _ in decoded} == {2, 4, 8}


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 8), st.data())
def test_nothing_is_enlarged(width: int, height: int, orientation: int, data: st.DataObject) -> None:
    file = file_of(Image.new("L", (width, height)), orientation=orientation)
    seen: list[tuple[int, int]] = []

    def choose(width: int, height: int) -> Cut:
        seen.append((width, height))
        left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
        size = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
        return Cut((left, top, right, bottom), size, Image.Resampling.BICUBIC)

    with pytest.MonkeyPatch.context() as patch:
        sizes: list[tuple[Any, ...]] = []
        resize = Image.Image.resize

        def watched(image: Image.Image, size: Any, resample: Any, box: Any) -> Image.Image:
            assert 0 <= box[0] < box[2] <= image.width
            assert 0 <= box[1] < box[3] <= image.height
            sizes.append((box[2] - box[0], box[3] - box[1], *size))
            return resize(image, size, resample, box)

        patch.setattr(Image.Image, "resize", watched)
        chosen = CutImage(1, choose)
        box: list[Cut] = []
        chosen.choose = lambda width, height: box.append(choose(width, height)) or box[0]  # type: ignore[func-returns-value]
        cut(chosen, file)
    assert seen == [read_image(file).size]
    [(across, down, *size)] = sizes
    left, top, right, bottom = box[0].box
    scale = round((right - left) / across)
    assert scale in (1, 2, 4, 8)
    assert (across, down) == ((right - left) / scale, (bottom - top) / scale)
    assert scale == 1 or (across >= size[0] and down >= size[1])
    assert scale == 8 or across < 2 * size[0] or down < 2 * size[1], "it could have been smaller"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(225, 233), (232, 226)])
def test_a_crop_lies_where_it_should_however_the_image_is_turned(
    orientation: int, size: tuple[int, int]
) -> None:
    """Of a ramp, which shows a shift by a part of a pixel. Sides are no multiples of 8."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    ramp = np.stack([x * 255 / size[0], y * 255 / size[1], 128 + 0 * x], 2).astype(np.uint8)
    file = file_of(Image.fromarray(ramp), orientation=orientation, quality=100, subsampling=0)
    whole = read_image(file)
    box = (20, 30, 20 + 8 * 25, 30 + 8 * 24)
    part = CutImage(3, lambda width, height: Cut(box, (25, 24), Image.Resampling.BILINEAR))
    every = CutImage(3, lambda w, h: Cut((0, 0, w, h), (28, 28), Image.Resampling.BILINEAR))
    expected = whole.crop(box).resize((25, 24), Image.Resampling.BILINEAR)
    # A pixel of the result is 8 of 225: 9 levels.
    assert np.abs(np.asarray(cut(part, file), int) - np.asarray(expected, int))[1:-1, 1:-1].max() <= 2
    assert difference(cut(every, file), whole.resize((28, 28), Image.Resampling.BILINEAR)) < 0.7


FILES: dict[str, Callable[[Image.Image], io.BytesIO]] = {
    "a small JPEG": lambda image: file_of(image.resize((90, 60))),
    "a small JPEG on its side": lambda image: file_of(image.resize((90, 60)), orientation=6),
    "PNG": lambda image: file_of(image, "PNG"),
    "PNG on its side": lambda image: file_of(image, "PNG", orientation=5),
    "TIFF on its side": lambda image: file_of(image, "TIFF", orientation=8),
    "WebP": lambda image: file_of(image, "WEBP"),
    "palette": lambda image: file_of(image.quantize(16), "GIF"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_what_is_decoded_in_full_is_as_without_the_option(
    kind: str, in_chans: int, photos: list[io.BytesIO]
) -> None:
    """Bit for bit, with all that is random after the crop, in training as in validation."""
    config = ClassificationConfig(
        image_size=48, in_chans=in_chans, interpolation="random", vflip=0.5, erase_prob=0.5,
        auto_augment="rand-m9-mstd0.5" if in_chans == 3 else None, color_jitter=0.3,
    )  # fmt: skip
    file = FILES[kind](read_image(photos[0]))
    whole = read_image(file, "RGB" if in_chans == 3 else "L")
    transform = train_transform(config)
    step, others = reduced_crop(transform, in_chans)
    for seed in range(8):
        with seeded(seed):
            expected = transform(whole)
        with seeded(seed):
            assert torch.equal(others(cut(step, file)), expected)
    evaluate = EvalTransform(data_config(config))
    assert torch.equal(evaluate(cut(evaluate.reduced, file)), evaluate(whole))


@pytest.mark.parametrize("orientation", [1, 6])
def test_validation_resizes_a_smaller_image(
    orientation: int, photos: list[io.BytesIO], decoded: list[tuple[int, int]]
) -> None:
    file = file_of(read_image(photos[0]), orientation=orientation, quality=90)
    evaluate = EvalTransform(data_config(ClassificationConfig(image_size=48, mean=(0.5,), std=(0.5,))))
    small, whole = cut(evaluate.reduced, file), read_image(file)
    assert min(small.size) == 54
    assert [tuple(sorted(size)) for size in decoded] == [(107, 160)]
    inputs = evaluate(small), evaluate(whole)
    assert float((inputs[0] - inputs[1]).abs().mean()) * 127.5 < MAX_DIFFERENCE
    already_read = evaluate.reduced(whole)
    assert torch.equal(evaluate(already_read), inputs[1])


def test_a_damaged_jpeg_is_named(tmp_path: Path, photos: list[io.BytesIO]) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "cut.jpg").write_bytes(photos[0].getvalue()[:9000])
    source = open_sources(ClassificationConfig(data=str(tmp_path)))["train"]
    step, _ = reduced_crop(train_transform(ClassificationConfig(image_size=48)), 3)
    with pytest.raises(ValueError, match=r"cut\.jpg: not a readable image \(image file is truncated"):
        source.prepared(0, step)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, photos: list[io.BytesIO]) -> dict[str, Any]:
    """Eight crops of photographs as JPEGs, by format."""
    root = tmp_path_factory.mktemp("data")
    files = {}
    for i in range(8):
        image = read_image(photos[i % 2]).crop((20 * i, 10 * i, 440 + 20 * i, 330 + 10 * i))
        files[f"{'ab'[i % 2]}/{i}.jpg"] = file_of(image, orientation=1 + i).getvalue()
    for name, content in files.items():
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    pack_folder(root / "folder", root / "packed.lmdb")
    in_order = sorted(files)
    samples = [{"jpg": files[name], "cls": b"%d" % "ab".index(name[0])} for name in in_order]
    write_shard(root / "shards" / "0.tar", samples)
    rows = [f"{name},{name[0]}" for name in in_order]
    (root / "table").mkdir()
    (root / "table" / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return {
        "folder": {"data": str(root / "folder")},
        "lmdb": {"data": str(root / "packed.lmdb")},
        "shards": {"data": str(root / "shards" / "0.tar")},
        "table": {"data": str(root / "table" / "labels.csv"), "images": str(root / "folder")},
        "torchvision": {"data": "torch/image_folder", "data_root": str(root / "folder"), "train_split": ""},
    }


def batches(options: dict[str, Any], start: int = 0, reduce: bool = True) -> list[Any]:
    config = tiny_config(**options, in_chans=3, image_size=32, batch_size=2, base_batch_size=2, rotate=0.0)
    split = Split(open_sources(config)["train"], range(8))
    prepare, transform = PrepareImage(3), train_transform(config)
    if reduce:
        prepare, transform = reduced_crop(transform, 3)
    keys = EpochBatches(8, plan_batches(config, 8, 1), config.seed, 1, start=start)
    return list(train_loader(split, transform, prepare, workers=0).batches(keys))


def test_every_source_gives_the_same_batches_and_so_does_a_resumed_epoch(data: dict[str, Any]) -> None:
    expected, full = batches(data["folder"]), batches(data["folder"], reduce=False)
    assert not torch.equal(expected[0][0], full[0][0])
    for kind, options in data.items():
        for start in (0, 3):
            for (images, labels), (images_, labels_) in zip(
                batches(options, start), expected[start:], strict=True
            ):
                assert torch.equal(images, images_), kind
                assert torch.equal(labels, labels_), kind


def test_a_run_keeps_the_option_and_is_evaluated_on_full_images(
    data: dict[str, Any], tmp_path: Path, decoded: list[tuple[int, int]]
) -> None:
    options = {"in_chans": 3, "image_size": 32, "rotate": 0.0, "val_fraction": 0.25, "test_fraction": 0.25}
    options |= {"batch_size": 2, "base_batch_size": 2, "reduced_decode": True}
    run = train_tiny(tmp_path / "run", **data["folder"], **options)
    assert "reduced_decode: true" in (run / "config.yaml").read_text()
    validated = len(decoded) - 2 * int(read_rows(run / "metrics.csv")[0]["step"])
    assert validated > 0, "images of validation are read so too"
    assert all(max(size) < 420 for size in decoded[-validated:])
    decoded.clear()
    predictor = load(run)
    predictor.evaluate()
    predictor(str(next((Path(data["folder"]["data"]) / "a").iterdir())))
    assert decoded == []


@pytest.mark.parametrize("option", ["rotate", "shift"])
def test_turned_images_are_needed_in_full(option: str) -> None:
    with pytest.raises(ValueError, match="reduced_decode and rotate or shift do not go together"):
        ClassificationConfig(reduced_decode=True, **{option: 0.1})
