"""Tables of classes, and what masks hold for each: indices, values, colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atconv.data.config import MaskOptions
from atconv.data.formats import open_masks
from atconv.data.masks.classes import IGNORED, read_classes, read_mask
from atconv.tasks.segmentation import SegmentationConfig
from support.tiny_dense import annotated_folder

COLORS = {"ground": (0, 0, 0), "dark": (128, 64, 128), "bright": (250, 170, 30)}
INDICES = np.kron(np.array([[0, 1], [2, 0]], np.uint8), np.ones((16, 16), np.uint8))


def table(folder: Path, text: str, name: str = "classes.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


TABLES = {
    "classes.txt": "ground 0 0 0\ndark 128 64 128\nbright 250 170 30\n",
    "hex.txt": "ground #000000\ndark #804080\nbright #FAAA1E\n",
    "label_colors.txt": "0 0 0\tground\n128 64 128\tdark\n250 170 30\tbright\n",
    "labelmap.txt": "# label:color_rgb:parts\nground:0,0,0::\ndark:128,64,128::\nbright:250,170,30::\n",
    "class_dict.csv": "name,r,g,b\nground,0,0,0\ndark,128,64,128\nbright,250,170,30\n",
    "spaces.csv": "r, g, b, name\n0, 0, 0, ground\n128, 64, 128, dark\n250, 170, 30, bright\n",
    "bare.csv": "ground,0,0,0\ndark,128,64,128\nbright,250,170,30\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_colors_are_read(name: str, tmp_path: Path) -> None:
    classes = read_classes(table(tmp_path, TABLES[name], name), MaskOptions())
    assert classes.names == list(COLORS)
    Image.fromarray(np.array(list(COLORS.values()), np.uint8)[INDICES]).save(tmp_path / "x.png")
    assert np.array_equal(classes.read(tmp_path / "x.png"), INDICES)
    assert classes.read(tmp_path / "x.png").dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "text", "codes"),
    [
        ("classes.txt", "ground\ndark\nbright side\n", (0, 1, 2)),
        ("classes.txt", "class 0\nclass 1\nclass 2\n", (0, 1, 2)),
        ("_classes.csv", "Pixel Value, Class\n0, ground\n7, dark\n9, bright\n", (0, 7, 9)),
        ("classes.csv", "class\nground\ndark\nbright\n", (0, 1, 2)),
    ],
)
def test_tables_of_names_and_values_are_read(
    name: str, text: str, codes: tuple[int, ...], tmp_path: Path
) -> None:
    classes = read_classes(table(tmp_path, text, name), MaskOptions())
    assert classes.codes == codes
    Image.fromarray(np.array(codes, np.uint8)[INDICES]).save(tmp_path / "x.png")
    assert np.array_equal(classes.read(tmp_path / "x.png"), INDICES)


def test_what_is_called_void_is_left_out(tmp_path: Path) -> None:
    colored = read_classes(table(tmp_path, TABLES["classes.txt"] + "Void 9 9 9\n"), MaskOptions())
    pixels = np.array([*COLORS.values(), (9, 9, 9)], np.uint8)[np.array([[0, 1], [2, 3]])]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert colored.names == list(COLORS)
    assert colored.read(tmp_path / "x.png").tolist() == [[0, 1], [2, IGNORED]]
    plain = read_classes(table(tmp_path, "void\nroad\nsky\n"), MaskOptions())
    Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(tmp_path / "y.png")
    assert plain.names == ["road", "sky"]
    assert plain.read(tmp_path / "y.png").tolist() == [[IGNORED, 0], [1, IGNORED]]


def test_values_may_be_ignored(tmp_path: Path) -> None:
    path = table(tmp_path, "road\nsky\n")
    Image.fromarray(np.array([[0, 7], [8, 3]], np.uint8)).save(tmp_path / "x.png")
    options = MaskOptions(mask_values=(7, 8), ignored_values=(0, 3))
    assert read_classes(path, options).read(tmp_path / "x.png").tolist() == [[IGNORED, 0], [1, IGNORED]]
    with pytest.raises(
        ValueError, match=r"x.png holds 3 \(1 pixel\): classes.txt has classes for \[7, 8\], and 0 is"
    ):
        read_classes(path, MaskOptions(mask_values=(7, 8), ignored_values=(0,))).read(tmp_path / "x.png")
    for values in ((7, 7), (256,), (-1,)):
        with pytest.raises(ValueError, match="ignored_values must be different numbers in 0 … 255"):
            SegmentationConfig(ignored_values=values)
    with pytest.raises(ValueError, match=r"mask_values and ignored_values both have \[7\]"):
        SegmentationConfig(mask_values=(7, 8), ignored_values=(7,))


WRONG = {
    "ground 0 0 0\ndark\nbright 9 9 9\n": "a color or value for some classes, and none for dark: add",
    "ground 0 0 0\ndark 0 0 0\n": "two names have #000000: give each its own",
    "ground 0 0 0\nground 1 1 1\n": "no two alike; it has ground, ground",
    "ground 0 0 0\nvoid 1 1 1\n": "2 … 255 names, no two alike; it has ground",
    "": "2 … 255 names, no two alike; it has none",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_table_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=WRONG[text]):
        read_classes(table(tmp_path, text), MaskOptions())


KINDS = {
    ".png": ("L", "P", "RGB", "RGBA", "LA", "I;16"),
    ".gif": ("L", "P", "RGB"),
    ".bmp": ("L", "P", "RGB"),
    ".tif": ("L", "P", "RGB", "RGBA", "LA", "I;16"),
    ".webp": ("L", "RGB", "RGBA"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix in KINDS for mode in KINDS[suffix]])
def test_pixels_are_read_in_any_kind_of_file(mode: str, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(INDICES)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    else:
        image = Image.fromarray(INDICES.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_mask(tmp_path / f"x{suffix}"), INDICES)


def test_gray_values_of_a_gif_are_those_that_were_written(tmp_path: Path) -> None:
    """The palette is renumbered by its writer: 0 and 2 are stored as 0 and 1."""
    for values in ((0, 2, 5), (0, 255, 128)):
        pixels = np.array(values, np.uint8)[INDICES]
        Image.fromarray(pixels).save(tmp_path / "x.gif")
        assert np.array_equal(read_mask(tmp_path / "x.gif"), pixels)


def test_a_palette_is_an_index_and_not_colors(tmp_path: Path) -> None:
    image = Image.fromarray(INDICES)
    image.putpalette([0, 0, 0, 255, 255, 255, 9, 9, 9])
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_mask(tmp_path / "x.png"), INDICES)
    assert read_mask(tmp_path / "x.png", colored=True)[0, -1].tolist() == [255, 255, 255]


def test_jpeg_masks_take_the_nearest_of_values_that_are_far_apart(tmp_path: Path) -> None:
    pixels = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((20, 20), np.uint8))
    Image.fromarray(pixels).save(tmp_path / "x.jpg")
    assert len(np.unique(read_mask(tmp_path / "x.jpg"))) > 2
    binary = read_classes(table(tmp_path, "a\nb\n"), MaskOptions(mask_values=(0, 255)))
    assert np.array_equal(binary.read(tmp_path / "x.jpg"), pixels // 255)
    with pytest.raises(
        ValueError, match=r"x.jpg holds .* JPEG changes values, save masks as PNG; classes.txt names 0 … 1"
    ):
        read_classes(tmp_path / "classes.txt", MaskOptions()).read(tmp_path / "x.jpg")
    colored = read_classes(table(tmp_path, "a 0 0 0\nb 255 255 255\n"), MaskOptions())
    assert np.array_equal(colored.read(tmp_path / "x.jpg"), pixels // 255)


def test_unknown_colors_are_counted_and_named(tmp_path: Path) -> None:
    classes = read_classes(table(tmp_path, TABLES["classes.txt"]), MaskOptions())
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, :3], pixels[1, 0] = (1, 2, 3), (255, 0, 16)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"x.png holds #010203, #ff0010 \(4 pixels\): classes.txt has other colors"
    ):
        classes.read(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda m: m, r"on each line, the first for index 0: 0, 1, 2, which 3 masks looked at hold"),
        (lambda m: m * 100, r"what masks hold for each as --mask-values '\[0, 100, 200\]'"),
        (
            lambda m: np.stack([m, m * 0, m], 2),
            r"as name r g b or name #rrggbb, for #000000, #010001, #020002",
        ),
    ],
)
def test_without_a_table_what_masks_hold_is_reported(convert, message: str, tmp_path: Path) -> None:
    data = annotated_folder(tmp_path, train=3, val=1)
    (data / "classes.txt").unlink()
    for path in (data / "masks").rglob("*.png"):
        Image.fromarray(convert(np.array(Image.open(path)))).save(path)
    with pytest.raises(
        ValueError, match=f"classes.txt does not exist: write the name of a class .*{message}"
    ):
        open_masks(data)


def test_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    data = annotated_folder(tmp_path / "data", train=3, val=1)
    path = (data / "classes.txt").rename(tmp_path / "names.txt")
    assert open_masks(data, options=MaskOptions(class_table=str(path)))["train"].classes == list(COLORS)
    with pytest.raises(ValueError, match=r"none.txt cannot be read \(No such file or directory\)"):
        open_masks(data, options=MaskOptions(class_table=str(tmp_path / "none.txt")))
