"""What workers are handed does not grow with the number of images: long lists lie in memory they share."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing  # noqa: F401  (hands tensors on in shared memory)

from atconv.data.config import MaskOptions
from atconv.data.formats import open_boxes, open_masks, open_sources
from atconv.data.images import PrepareImage
from atconv.data.loaders import SeededItems, train_loader
from atconv.data.sources.lmdb_file import build_lmdb
from atconv.data.splits import Split
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.detection.data import TrainExamples as DetectionExamples
from atconv.tasks.generation import data as generation
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import TrainExamples as SegmentationExamples
from support.box_formats import voc_folder, yolo_folder
from support.tiny import image_folder
from support.tiny_dense import annotated_folder
from support.wds import samples, write_shard

FEW, MANY = 6, 100


def table(folder: Path, count: int, label: Callable[[int], str]) -> Path:
    names = [path.name for path in sorted((image_folder(folder, {"images": count}) / "images").iterdir())]
    rows = [f"{name},{label(i)}" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return folder / "labels.csv"


def lmdb(folder: Path, count: int) -> Path:
    build_lmdb(folder / "a.lmdb", ((b"", i % 2) for i in range(count)), count, ["a", "b"])
    return folder / "a.lmdb"


LABELED: dict[str, Callable[[Path, int], Any]] = {
    "folders": lambda folder, count: image_folder(folder, {"a": count // 2, "b": count // 2}),
    "table": lambda folder, count: table(folder, count, lambda i: "ab"[i % 2]),
    "several labels": lambda folder, count: table(folder, count, lambda i: ("a", "b", "a;b")[i % 3]),
    "lmdb": lmdb,
    "shards": lambda folder, count: write_shard(folder / "0.tar", samples(count)),
    "torchvision": lambda folder, count: image_folder(folder, {"a": count // 2, "b": count // 2}),
}


def labeled(kind: str, folder: Path, count: int) -> Any:
    data, options = str(LABELED[kind](folder, count)), {}
    if kind == "torchvision":
        data, options = "torch/image_folder", {"data_root": data, "train_split": ""}
    source = open_sources(ClassificationConfig(data=data, **options))["train"]
    assert len(source) == count
    return Split(source, range(count))


@pytest.mark.parametrize("kind", LABELED)
def test_labeled_images(kind: str, tmp_path: Path) -> None:
    def dataset(count: int) -> Any:
        (tmp_path / str(count)).mkdir()
        split = labeled(kind, tmp_path / str(count), count)
        return train_loader(split, abs, PrepareImage(3), workers=0)._loader.dataset  # type: ignore[arg-type]

    assert_alike(dataset)


ANNOTATED: dict[str, Callable[[Path, int], Any]] = {
    "coco": lambda folder, count: boxes(annotated_folder(folder, count, 2)),
    "yolo": lambda folder, count: boxes(yolo_folder(folder, train=count, val=2)),
    "voc": lambda folder, count: boxes(voc_folder(folder, train=count, val=2)),
    "masks": lambda folder, count: SegmentationExamples(
        open_masks(annotated_folder(folder, count, 2), options=MaskOptions())["train"], SegmentationConfig()
    ),
}


def boxes(folder: Path) -> Any:
    return DetectionExamples(open_boxes(folder, masks=False)["train"], DetectionConfig())


@pytest.mark.parametrize("kind", ANNOTATED)
def test_annotated_images(kind: str, tmp_path: Path) -> None:
    assert_alike(lambda count: SeededItems(ANNOTATED[kind](tmp_path / str(count), count)))


def test_images_to_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_CACHED_BYTES", 0)
    assert_alike(lambda count: generation.Pixels(labeled("folders", tmp_path / str(count), count), 8, 3))


def assert_alike(dataset: Callable[[int], Any]) -> None:
    few, many = (len(bytes(ForkingPickler.dumps(dataset(count)))) for count in (FEW, MANY))
    assert many - few < (MANY - FEW) / 2, "not even half a byte an image"
