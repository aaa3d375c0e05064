"""Small files and runs that pages name and do not make."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from support.doc_commands import run_atconv


def provide(source: str) -> None:
    """Make in the current folder what a block or command names."""
    for name, make in SAMPLES.items():
        if re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", source) and not Path(name).exists():
            make(Path(name))


def _release(path: Path) -> None:
    torch.save({"model": timm.create_model("attnet_t2").state_dict()}, path)


def _photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog", "fox"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.jpg")


def _pets(folder: Path) -> None:
    _images(folder, 24, "pictures")
    rows = (f"{i},{'cat' if i % 2 else 'dog'},{('train', 'train', 'val')[i % 3]}\n" for i in range(1, 25))
    (folder / "labels.csv").write_text("id,animal,split\n" + "".join(rows))


def _scenes(folder: Path) -> None:
    _images(folder, 24, "images")
    rows = (f"{i}.jpg,{'beach;' * (i % 2)}{'sunset' * (i % 3 > 0)}\n" for i in range(1, 25))
    (folder / "tags.csv").write_text("image,tags\n" + "".join(rows))


def _images(folder: Path, count: int = 2, inner: str = "") -> None:
    (folder / inner).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(1, count + 1):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / inner / f"{i}.jpg")


def _annotated(folder: Path) -> None:
    from support.tiny_dense import annotated_folder

    annotated_folder(folder, train=8, val=4)


def _camvid(folder: Path) -> None:
    """The same in other folders, masks with colors."""
    _annotated(folder)
    colors = np.array([(0, 0, 0), (128, 64, 128), (70, 130, 180)], np.uint8)
    for split in ("train", "val"):
        (folder / "images" / split).rename(folder / split)
        (folder / f"{split}_labels").mkdir()
        for mask in (folder / "masks" / split).iterdir():
            pixels = colors[np.asarray(Image.open(mask))]
            Image.fromarray(pixels).save(folder / f"{split}_labels" / f"{mask.stem}_L.png")
    for name in ("images", "masks"):
        shutil.rmtree(folder / name)
    (folder / "classes.txt").rename(folder / "class_dict.csv")
    rows = ["name,r,g,b", "ground,0,0,0", "dark,128,64,128", "bright,70,130,180"]
    (folder / "class_dict.csv").write_text("\n".join(rows))


def _yolo(folder: Path) -> None:
    from support.box_formats import yolo_folder

    yolo_folder(folder, train=8, val=4)


def _voc(folder: Path) -> None:
    from support.box_formats import voc_folder

    voc_folder(folder, "VOC", train=8, val=4)


def _scan(path: Path) -> None:
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(path)


@functools.cache
def _digits_run() -> Path:
    """A run of the digits recipe with scans in it, which pages get copies of."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run_atconv(["train", "digits", "--config", "digits", "--out", str(folder / "run")])
    scans = folder / "run" / "scans"
    scans.mkdir()
    digits = load_digits()
    for label in range(4):
        image = Image.fromarray((digits.images[list(digits.target).index(label)] * 15).astype(np.uint8))
        image.resize((16, 16)).save(scans / f"a-{label}.png")
    return folder / "run"


def _digits(folder: Path) -> None:
    shutil.copytree(_digits_run(), folder)


SAMPLES: dict[str, Callable[[Path], None]] = {
    "photos": _photos,
    "pets": _pets,
    "scenes": _scenes,
    "new": _images,
    "more": _images,
    "street": _annotated,
    "fields": _annotated,
    "camvid": _camvid,
    "garden": _yolo,
    "yard": _voc,
    "scan.png": _scan,
    "AttNet_T2.pth": _release,
    "runs/demo": _digits,
    "runs/attention": _digits,
    "runs/no-inhibition": _digits,
}
