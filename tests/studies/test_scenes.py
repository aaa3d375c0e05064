"""Garment scenes: a scene follows from its number, and its boxes and masks are exact."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studies.datasets import scenes
from studies.datasets.garments import Garments
from studies.datasets.scenes import HEIGHT, KINDS, WIDTH, build_garment_scenes, make_scene

NAMES = [name for names in KINDS.values() for name in names]


def discs() -> Garments:
    """Discs in a dark frame, whose brightness says their class."""
    labels = np.arange(200) % 10
    y, x = np.mgrid[:28, :28] - 13.5
    disc = (x**2 + y**2 < 12**2).astype(np.uint8)
    return Garments((disc * (150 + 10 * labels)[:, None, None]).astype(np.uint8), labels, NAMES)


GARMENTS = discs()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 99), split=st.integers(0, 2), index=st.integers(0, 10**6))
def test_masks_and_boxes_are_exact(seed: int, split: int, index: int) -> None:
    scene = make_scene(GARMENTS, seed, split, index)
    assert scene.pixels.shape == (HEIGHT, WIDTH)
    assert 1 <= len(scene.classes) == len(scene.masks) <= 3
    assert np.sum(scene.masks, axis=0).max() == 1  # each pixel belongs to one garment at most
    for label, mask, (left, top, width, height) in zip(scene.classes, scene.masks, scene.boxes, strict=True):
        inside = np.zeros_like(mask)
        inside[top : top + height, left : left + width] = True
        assert mask.any()
        assert not (mask & ~inside).any()
        for edge in (mask[top], mask[top + height - 1], mask[:, left], mask[:, left + width - 1]):
            assert edge.any()  # the box is tight
        assert np.median(scene.pixels[mask]) == 150 + 10 * label
    background = scene.pixels[~np.any(scene.masks, axis=0)]
    assert background.max(initial=0) <= 0.5 * 255  # clutter is faded
    again = make_scene(GARMENTS, seed, split, index)
    assert np.array_equal(scene.pixels, again.pixels)
    assert all(np.array_equal(a, b) for a, b in zip(scene.masks, again.masks, strict=True))


def test_garments_overlap_and_stay_visible() -> None:
    visible = [mask.sum() / (np.pi / 4 * max(mask.any(0).sum(), mask.any(1).sum()) ** 2)
             for i in range(200) for mask in make_scene(GARMENTS, 0, 0, i).masks]  # fmt: skip
    assert np.mean(np.array(visible) < 0.9) > 0.1
    assert min(visible) > 0.5


def test_classes_are_even_and_other_numbers_give_other_scenes() -> None:
    counts = Counter(label for i in range(1000) for label in make_scene(GARMENTS, 0, 0, i).classes)
    assert all(0.8 < counts[label] / 200 < 1.2 for label in range(10))
    first = make_scene(GARMENTS, 0, 0, 0).pixels
    for arguments in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not np.array_equal(make_scene(GARMENTS, *arguments).pixels, first)


def test_the_scenes_are_those_that_results_were_made_with() -> None:
    """numpy may change what its generators sample, Pillow how it scales: then studies are to be run again."""
    shades = np.arange(784, dtype=np.uint32).reshape(1, 28, 28) * np.arange(1, 201)[:, None, None]
    shaded = replace(GARMENTS, images=(shades % 251).astype(np.uint8))
    digest = hashlib.sha256()
    for index in range(50):
        scene = make_scene(shaded, 0, index % 3, index)
        masks = b"".join(np.packbits(mask).tobytes() for mask in scene.masks)
        digest.update(scene.pixels.tobytes() + bytes(scene.classes) + masks)
    assert digest.hexdigest() == "213b8f1e80a9ad65aec27c39381d77eafebedd9a207d4a3ecd89ca335ace1935"


def test_files_hold_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from faster_coco_eval.core import mask as coco_mask

    monkeypatch.setattr(scenes, "load_garments", lambda root, split: GARMENTS)
    out = build_garment_scenes(tmp_path, tmp_path / "out", train=3, val=2, test=4, seed=3)
    assert (out / "classes.txt").read_text().split() == ["background", *KINDS]
    val = scenes.load_split_garments(tmp_path, "val")
    assert len(val.labels) == 20
    content = json.loads((out / "val.json").read_text())
    kinds = {c["id"]: c["supercategory"] for c in content["categories"]}
    for i, image in enumerate(content["images"]):
        scene = make_scene(val, 3, 1, i)
        pixels = np.asarray(Image.open(out / "images" / "val" / image["file_name"]))
        semantic = np.asarray(Image.open(out / "masks" / "val" / image["file_name"]))
        assert np.array_equal(pixels, scene.pixels)
        assert (semantic > 0).sum() == sum(mask.sum() for mask in scene.masks)
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for annotation, mask, box in zip(own, scene.masks, scene.boxes, strict=True):
            decoded = coco_mask.decode(coco_mask.segmToRle(annotation["segmentation"], WIDTH, HEIGHT))
            assert np.array_equal(decoded.reshape(HEIGHT, WIDTH).astype(bool), mask)
            assert annotation["bbox"] == list(box)
            assert annotation["area"] == mask.sum()
            [kind] = np.unique(semantic[mask])
            assert list(KINDS)[kind - 1] == kinds[annotation["category_id"]]
    with pytest.raises(ValueError, match="is there already: remove it, or name another folder"):
        build_garment_scenes(tmp_path, out)


def test_missing_images_and_no_scenes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unpack it with python -m studies\.datasets"):
        build_garment_scenes(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="must be at least 1"):
        build_garment_scenes(tmp_path, tmp_path / "out", val=0)
    assert not (tmp_path / "out").exists()
