"""What detectors and segmenters train on: images, boxes and masks changed together; and their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from atconv.data import loaders
from atconv.data.annotated import batches_of_equal_size
from atconv.data.boxes.split import BoxSplit
from atconv.data.formats import open_boxes, open_masks
from atconv.data.masks.split import IGNORED
from atconv.tasks.detection.data import DetectionTransform, eval_batches, load_target
from atconv.tasks.detection.data import augmentation as boxes_augmentation
from atconv.tasks.detection.metrics import mean_average_precision
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.segmentation.data import SegmentationTransform, _RandomShortSide, predictions, resized
from atconv.tasks.segmentation.data import augmentation as masks_augmentation
from support.tiny_dense import annotated_folder, shared_data


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 99))
def test_boxes_and_masks_turn_with_their_image(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, top = int(rng.integers(0, width - 4)), int(rng.integers(0, height - 4))
    pixels = torch.zeros(1, height, width, dtype=torch.uint8)
    pixels[:, top : top + 4, left : left + 3] = 200
    box = torch.tensor([[left, top, left + 3, top + 4]], dtype=torch.float32)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([1]),
        "masks": tv_tensors.Mask(pixels > 0),
    }
    image, changed = boxes_augmentation(1.0, 0.0)(tv_tensors.Image(pixels), target)
    torch.testing.assert_close(image, pixels.flip(2) / 255)
    x0, y0, x1, y1 = changed["boxes"][0].int().tolist()
    assert (image[:, y0:y1, x0:x1] > 0).all()
    assert (image > 0).sum() == (x1 - x0) * (y1 - y0)
    assert torch.equal(changed["masks"], image > 0)


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 99))
def test_a_mask_stays_on_its_image(height: int, width: int, seed: int) -> None:
    config = SegmentationConfig(
        data="data", in_chans=1, short_side=32, scales=(0.5, 1.5), crop=(32, 64), mean=(0.5,), std=(0.5,)
    )
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[: height // 2, : width // 2] = 1
    torch.manual_seed(seed)
    image, changed = masks_augmentation(config)(tv_tensors.Image(254 * mask[None]), tv_tensors.Mask(mask))
    assert image.shape == (1, 32, 64)
    assert changed.shape == (32, 64)
    shown = changed != IGNORED
    assert (image[0][~shown] == 0).all()
    # Borders are blurred in the image and not in the mask.
    assert ((image[0] > 0) == (changed == 1))[shown].float().mean() > 0.8
    assert shown.any()


class Answers(nn.Module):
    """A detector that gives these answers, one image after the other."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.weight, self.answers = nn.Parameter(torch.zeros(1)), answers

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.answers.pop(0) for _ in images]


def metrics_of(split: BoxSplit, change: Any) -> dict[str, float]:
    answers = []
    for boxes in (
        split.boxes(i) for batch in batches_of_equal_size(split, range(len(split)), 2) for i in batch
    ):
        detections = {
            "boxes": torch.tensor([box.corners for box in boxes]),
            "labels": torch.tensor([box.label for box in boxes]),
            "scores": torch.full((len(boxes),), 0.9),
        }
        change(detections)
        answers.append(detections)
    batches = batches_of_equal_size(split, range(len(split)), 2)
    loaded = eval_batches(split, batches, DetectionTransform(1), False, torch.device("cpu"))
    return mean_average_precision(Answers(answers), loaded, False)


def test_mean_average_precision() -> None:
    split = open_boxes(shared_data(), False)["val"]

    def narrow(detections: dict[str, Tensor]) -> None:
        detections["boxes"][:, 2] -= 0.28 * (detections["boxes"][:, 2] - detections["boxes"][:, 0])

    def miss_one_class(detections: dict[str, Tensor]) -> None:
        selected = detections["labels"] == 1
        detections.update({name: value[selected] for name, value in detections.items()})

    def swap(detections: dict[str, Tensor]) -> None:
        detections["labels"] = 3 - detections["labels"]

    assert metrics_of(split, lambda detections: None) == pytest.approx({"map": 100, "map_50": 100})
    # An overlap of 0.72 passes the thresholds 0.5, 0.55 … 0.7: five of ten.
    assert metrics_of(split, narrow) == pytest.approx({"map": 50, "map_50": 100})
    assert metrics_of(split, miss_one_class) == pytest.approx({"map": 50, "map_50": 50})
    assert metrics_of(split, swap)["map_50"] < 20


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


@pytest.mark.parametrize("size", [(4, 400), (400, 4)])
def test_a_long_image_is_not_blown_up(size: tuple[int, int]) -> None:
    """Its longer side ends at ten times the shorter one's, in training as in evaluation."""
    assert max(resized(size, 32)) == 320
    seen: list[tuple[int, int]] = []

    class Watched(_RandomShortSide):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            output = super().transform(inpt, params)
            seen.append(tuple(output.shape[-2:]))
            return output

    image = tv_tensors.Image(torch.zeros(1, *size, dtype=torch.uint8))
    Watched(16, 48)(image, tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)))
    assert seen[0] == seen[1]
    assert 160 <= max(seen[0]) <= 480


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda")])
def test_evaluated_images_lie_in_pinned_memory_for_a_gpu(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are those of the split, in order."""
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
    batches = list(eval_batches(boxes, positions, detect, True, device))
    for i, image in zip(order, (image for images, _ in batches for image in images), strict=True):
        assert torch.equal(image, detect(boxes.read(i, "L")))
    for i, target in zip(order, (target for _, targets in batches for target in targets), strict=True):
        torch.testing.assert_close(target, load_target(boxes, i, True), rtol=0, atol=0)
    segment, seen = SegmentationTransform(1, 40, None, None), []

    def classify(inputs: Tensor, size: tuple[int, int]) -> Tensor:
        seen.extend(inputs)
        return torch.zeros(len(inputs), *size, dtype=torch.int64)

    pairs = list(predictions(masks, positions, segment, classify, device))
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
