"""What detectors and segmenters train on: images, boxes and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from atconv.data import loaders
from atconv.data.annotated import batches_of_equal_size
from atconv.data.formats import open_boxes, open_masks
from atconv.data.loaders import EpochLoader, Items
from atconv.tasks.detection.data import DetectionTransform, collate, load_target
from atconv.tasks.detection.data import EvalExamples as DetectionExamples
from atconv.tasks.segmentation.data import EvalExamples as SegmentationExamples
from atconv.tasks.segmentation.data import SegmentationTransform, predictions
from support.tiny_dense import annotated_folder, shared_data


def test_only_the_split_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=2, val=1)
    (data / "images" / "train" / "0.png").write_bytes(b"no image")
    (data / "masks" / "train" / "0.png").write_bytes(b"no image")
    assert list(open_boxes(data, False, split="auto")) == ["val"]
    assert list(open_masks(data, split="val")) == ["val"]
    with pytest.raises(ValueError, match="not in an image format"):
        open_boxes(data, False, split="train")
    with pytest.raises(ValueError, match="has no test split, only train, val: choose one with --split"):
        open_masks(data, split="test")


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda")])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluated_images_lie_in_pinned_memory_for_a_gpu(
    workers: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are those of the split, in order, however many processes load them."""
    pinned: list[bool] = []

    class Watched(DataLoader[Any]):
        def __init__(self, *args: Any, pin_memory: bool, **options: Any) -> None:
            pinned.append(pin_memory)
            super().__init__(*args, **options)

    monkeypatch.setattr(loaders, "DataLoader", Watched)
    boxes, masks = open_boxes(shared_data(), True)["val"], open_masks(shared_data())["val"]
    positions = batches_of_equal_size(boxes, range(len(boxes)), 2)
    order = [i for batch in positions for i in batch]
    detect = DetectionTransform(1)
    loader = EpochLoader(Items(DetectionExamples(boxes, detect, True)), workers, device, collate)
    batches = list(loader.batches(positions))
    for i, image in zip(order, (image for images, _ in batches for image in images), strict=True):
        assert torch.equal(image, detect(boxes.read(i, "L")))
    for i, target in zip(order, (target for _, targets in batches for target in targets), strict=True):
        torch.testing.assert_close(target, load_target(boxes, i, True), rtol=0, atol=0)
    segment, seen = SegmentationTransform(1, 40, None, None), []

    def classify(inputs: Tensor, size: tuple[int, int]) -> Tensor:
        seen.extend(inputs)
        return torch.zeros(len(inputs), *size, dtype=torch.int64)

    loader = EpochLoader(Items(SegmentationExamples(masks, segment)), workers, device)
    pairs = list(predictions(loader.batches(positions), classify))
    for i, one, (mask, predicted) in zip(order, seen, pairs, strict=True):
        assert torch.equal(one, segment(masks.read(i, "L")))
        assert torch.equal(mask, torch.from_numpy(masks.mask(i)))
        assert predicted.shape == mask.shape
    assert pinned == [device.type == "cuda"] * 2


def test_batches_hold_images_of_one_size() -> None:
    for split in (open_boxes(shared_data(), False)["train"], open_masks(shared_data())["train"]):
        batches = batches_of_equal_size(split, range(len(split)), 3)
        assert sorted(i for batch in batches for i in batch) == list(range(12))
        assert sorted(map(len, batches)) == [1, 1, 1, 3, 3, 3]
        for batch in batches:
            assert len({split.read(i, "L").size for i in batch}) == 1
            assert split.size(batch[0]) == split.read(batch[0], "L").size[::-1]
