"""Annotations of images with an EXIF orientation lie on the image turned upright."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from atconv.data.formats import open_boxes, open_masks
from atconv.data.orientation import turn_corners, turn_mask, turn_size
from atconv.tasks.detection.data import load_target
from support.tiny_dense import annotated_folder, annotations

ORIENTATIONS = range(1, 9)


def turn(path: Path, orientation: int) -> None:
    """Give an image file an orientation; its pixels stay."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def turned_folder(root: Path, orientation: int, suffix: str = ".png", train: int = 3) -> Path:
    data = annotated_folder(root, train=train, val=1)
    for path in (data / "images").rglob("*.png"):
        image = Image.open(path)
        path.unlink()
        image.save(path.with_suffix(suffix))
        turn(path.with_suffix(suffix), orientation)
    for path in data.glob("*.json"):
        path.write_text(path.read_text().replace(".png", suffix))
    return data


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_and_boxes_turn_as_images_do(orientation: int) -> None:
    mask = np.zeros((7, 11), np.uint8)
    mask[1:3, 4:9] = 1
    image = Image.fromarray(mask)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn_mask(mask, orientation), upright)
    assert turn_size((11, 7), orientation) == upright.shape[::-1]
    left, top, right, bottom = (int(x) for x in turn_corners((4, 1, 9, 3), (11, 7), orientation))
    assert upright[top:bottom, left:right].all()
    assert upright.sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_annotations_of_stored_pixels_lie_on_the_objects(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    data = turned_folder(tmp_path, orientation, suffix, train=2)  # neither square
    boxes, masks = open_boxes(data, True, exif="stored")["train"], open_masks(data, exif="stored")["train"]
    for i in range(len(boxes)):
        pixels = np.asarray(boxes.read(i, "L"))
        assert boxes.size(i) == masks.size(i) == masks.mask(i).shape == pixels.shape
        assert (pixels[masks.mask(i) == 2] > 200).mean() > 0.95  # of JPEG and WebP, edges are blurred
        target = load_target(boxes, i, masks=True)
        left, top, right, bottom = target["boxes"][1].int().tolist()
        assert target["masks"][1, top:bottom, left:right].all()
        assert (pixels[target["masks"][1].bool().numpy()] > 200).mean() > 0.95
    if orientation > 4:
        assert annotations(open_boxes(data, True)["train"]) == annotations(boxes)  # as sizes tell
        assert all(np.array_equal(a.mask(0), b.mask(0)) for a, b in [(open_masks(data)["train"], masks)])


@pytest.mark.parametrize("orientation", ORIENTATIONS[1:])
def test_an_orientation_is_noticed(orientation: int, tmp_path: Path) -> None:
    data = turned_folder(tmp_path, orientation)
    carry = "1 image carries" if orientation > 4 else "images carry"  # of others sizes tell
    message = f"{carry} an EXIF orientation.*2.png \\({orientation}\\).*--exif stored or --exif upright"
    with pytest.raises(ValueError, match=message):
        open_boxes(data, False)
    with pytest.raises(ValueError, match=message):
        open_masks(data)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_tell_what_annotations_belong_to(orientation: int, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    turn(data / "images" / "train" / "0.png", orientation)
    assert annotations(open_boxes(data, False)["train"]) == annotations(
        open_boxes(data, False, exif="stored")["train"]
    )
    with pytest.raises(ValueError, match="is 40 × 56 pixels and not 56 × 40"):
        open_boxes(data, False, exif="upright")
    content = json.loads((data / "train.json").read_text())
    content["images"][0] |= {"width": 40, "height": 56}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 100]
    (data / "train.json").write_text(json.dumps(content))
    assert annotations(open_boxes(data, False)["train"]) == annotations(
        open_boxes(data, False, exif="upright")["train"]
    )
