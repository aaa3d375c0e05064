"""The folder of `annotated_folder` in other formats of boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support.tiny_dense import annotated_folder

LAYOUTS = {
    "images/train": ("images/{split}", "labels/{split}"),
    "train/images": ("{split}/images", "{split}/labels"),
    "side by side": ("{split}", "{split}"),
}
"""where the images and the annotations of a split lie"""

NAMES = ["bright", "dark"]


def yolo_folder(
    root: Path, layout: str = "images/train", polygons: bool = False, config: str | None = None, **sizes: int
) -> Path:
    """In YOLO's format.

    Args:
        config: data.yaml; default: names and the splits' folders; empty: none.
    """
    _other_format(root, LAYOUTS[layout], ".txt", _yolo_text, polygons, **sizes)
    train, val = (LAYOUTS[layout][0].format(split=split) for split in ("train", "val"))
    default = f"train: {train}\nval: {val}\nnc: 2\nnames: {json.dumps(NAMES)}\n"
    if config != "":
        (root / "data.yaml").write_text(default if config is None else config)
    return root


def voc_folder(root: Path, layout: str = "train/images", **sizes: int) -> Path:
    """In Pascal VOC's format."""
    places = {
        "VOC": ("JPEGImages", "Annotations"),
        "images/train": ("images/{split}", "annotations/{split}"),
        "train/images": ("{split}/JPEGImages", "{split}/Annotations"),
        "side by side": LAYOUTS["side by side"],
    }[layout]
    names = _other_format(root, places, ".xml", _voc_text, False, **sizes)
    if layout == "VOC":
        (root / "ImageSets" / "Main").mkdir(parents=True)
        for split, own in names.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(own) + "\n")
    return root


def _other_format(
    root: Path, places: tuple[str, str], suffix: str, write: Any, polygons: bool, **sizes: int
) -> Any:
    """Names of the images of each split, which are written."""
    source = annotated_folder(root.with_name(f"{root.name}-coco"), **sizes)
    names: dict[str, list[str]] = {}
    for split in ("train", "val"):
        content = json.loads((source / f"{split}.json").read_text())
        images, texts = (root / place.format(split=split) for place in places)
        images.mkdir(parents=True, exist_ok=True)
        texts.mkdir(parents=True, exist_ok=True)
        classes = {category["id"]: NAMES.index(category["name"]) for category in content["categories"]}
        for image in content["images"]:
            stem = image["file_name"][:-4] if "{split}" in places[0] else f"{split}{image['file_name'][:-4]}"
            shutil.copy(source / "images" / split / image["file_name"], images / f"{stem}.png")
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = [(classes[a["category_id"]], a["bbox"], a["segmentation"][0]) for a in own]
            (texts / f"{stem}{suffix}").write_text(write(image, stem, objects, polygons))
            names.setdefault(split, []).append(stem)
    return names


def _yolo_text(image: dict[str, Any], stem: str, objects: list[Any], polygons: bool) -> str:
    width, height = image["width"], image["height"]
    lines = []
    for number, (x, y, w, h), polygon in objects:
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        if polygons:
            values = [value / (height if i % 2 else width) for i, value in enumerate(polygon)]
        lines.append(f"{number} " + " ".join(f"{value:.6f}" for value in values))
    return "\n".join(lines) + "\n"


def _voc_text(image: dict[str, Any], stem: str, objects: list[Any], polygons: bool) -> str:
    parts = [f"<filename>{stem}.png</filename>"]
    parts.append(
        f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>1</depth></size>"
    )
    parts += [voc_object(NAMES[number], (x + 1, y + 1, x + w, y + h)) for number, (x, y, w, h), _ in objects]
    return "<annotation>\n" + "\n".join(parts) + "\n</annotation>\n"


def voc_object(name: str, box: tuple[Any, ...], more: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bounds = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{bounds}</bndbox></object>"
