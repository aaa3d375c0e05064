"""Images as files have them → PIL images of one kind, alike in training and prediction."""

from __future__ import annotations

import functools
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from atconv.io import check_file

__all__ = [
    "Listing",
    "PrepareImage",
    "find_images",
    "holds_runs",
    "image_suffixes",
    "images_in",
    "is_ignored",
    "is_run",
    "leads_down",
    "list_files",
    "list_images",
    "open_image",
    "opened_image",
    "plugin_advice",
    "preparation",
    "read_image",
    "scan",
    "stored_geometry",
    "upright",
]

Mode = Literal["RGB", "L"]

_HEIF = {".heic", ".heif", ".hif"}
_ORIENTATION = 0x0112  # in EXIF
# Files that Pillow opens without decoding them, and PostScript, for which it starts another program.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# What systems, file managers, storage servers and other tools leave in folders, in lower case.
_TOOL_FOLDERS = {
    "@eadir", "@recycle", "@synoresource", "@tmp", "@__thumb", "#recycle", "#snapshot", "$recycle.bin",
    "__macosx", "__pycache__", "_macosx", "_svn", "_vti_cnf", "_vti_pvt", "cvs", "found.000", "lost+found",
    "network trash folder", "node_modules", "recycle bin", "recycled", "recycler",
    "system volume information", "temporary items",
}  # fmt: skip
_TOOL_FILES = {"desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r"}


def read_image(file: str | Path | BinaryIO, mode: Mode = "RGB") -> Image.Image:
    """Read one image, decoded in full and upright, as RGB or gray.

    EXIF orientation is applied; transparent pixels lie on white; 16-bit gray is scaled to 8 bits;
    palette, CMYK and gray are converted.

    Raises:
        ValueError: the file is not an image, is truncated or is too large to be honest.
        FileNotFoundError: no such file.
    """
    with opened_image(file) as image:
        return upright(image, mode)


@contextmanager
def opened_image(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """An image that is not decoded yet; what goes wrong in opening and in decoding it names the file.

    Raises:
        FileNotFoundError, ValueError: as `read_image` does.
    """
    try:
        _load_plugins()
        with _stream(file) as stream, Image.open(stream) as image:
            if image.format in _NO_IMAGES:
                raise ValueError(f"{image.format} is not read: save it as PNG")
            yield image
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, EOFError) as error:
        name = "" if hasattr(file, "read") else f"{file}: "
        advice = plugin_advice([Path(name.strip(": ")).suffix])
        raise ValueError(f"{name}not a readable image ({_reason(error)}{advice})") from error


def _stream(file: str | Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    """An open file. By its path, Pillow (12.3) maps an uncompressed TIFF into memory, and mixes up the rows
    of one that lies on its side."""
    if not isinstance(file, (str, Path)):
        return nullcontext(file)
    check_file(file)
    return Path(file).open("rb")


def open_image(image: str | Path | Image.Image | np.ndarray, mode: Mode = "RGB") -> Image.Image:
    """An image as `read_image` gives it, from a file, a PIL image, or an array H W, H W 1 or H W 3 of uint8.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
        TypeError: it is of another kind, such as a tensor.
    """
    if isinstance(image, Image.Image):
        return upright(image, mode)
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or (image.ndim == 3 and image.shape[2] not in (1, 3))
        ):
            raise ValueError(
                f"an image array is H W, H W 1 or H W 3 of uint8, got {image.dtype} {image.shape}"
            )
        return as_mode(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image), mode)
    if not isinstance(image, (str, os.PathLike)) and not hasattr(image, "read"):
        raise TypeError(
            "an image is a path, a PIL image or an array H W, H W 1 or H W 3 of uint8, got "
            f"{type(image).__name__}; a tensor C H W of 0 … 1 becomes one by "
            "(255 * tensor).byte().permute(1, 2, 0).numpy()"
        )
    return read_image(image, mode)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the image files that Pillow reads here."""
    _load_plugins()
    formats = {*Image.OPEN, "MPO"} - _NO_IMAGES  # MPO is opened as JPEG
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in formats)


@functools.cache
def _load_plugins() -> None:
    """Let Pillow read all that it can here, HEIC too where its plugin is installed."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def plugin_advice(suffixes: Iterable[str]) -> str:
    """How to read files of some suffixes that are not read here; empty where there is no way."""
    missing = {suffix.lower() for suffix in suffixes} & _HEIF - image_suffixes()
    return f"; for {', '.join(sorted(missing))}: pip install 'atconv[heif]'" if missing else ""


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or a tool's own."""
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS or name.lower() in _TOOL_FILES


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run. One that cannot be read is none, and is named where it is listed."""
    marks = ("split.json", "metrics.csv", "checkpoints", "config.json", "log.txt")
    return os.path.isfile(path / "config.yaml") and any(os.path.exists(path / name) for name in marks)


def holds_runs(folder: str | Path) -> bool:
    """Whether a folder is that of a run, or the usual runs/ with one in it: its images are no data."""
    path = Path(folder)
    return is_run(path) or (path.name.lower() == "runs" and any(is_run(path / e.name) for e in scan(path)))


@dataclass
class Listing:
    """What lies below a folder."""

    files: list[str] = field(default_factory=list)
    """names of those that are looked for, relative to the folder, sorted"""
    others: Counter[str] = field(default_factory=Counter)
    """how many other files there are, by suffix"""
    tool_folders: list[str] = field(default_factory=list)
    """folders of runs, and those that tools have left, which were not searched"""


def list_images(folder: Path) -> Listing:
    """The image files below a folder; see `list_files`."""
    return list_files(folder, image_suffixes())


def list_files(folder: Path, suffixes: frozenset[str]) -> Listing:
    """The files of some suffixes, in lower case, below a folder, without hidden ones, those of runs and what
    tools have left. Links to folders are followed in the folder itself, not below, and never back up.

    Raises:
        ValueError: a folder cannot be read.
    """
    listing = Listing()
    _list_into(listing, os.fspath(folder), "", suffixes)
    return listing


def scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be read ({error.strerror}): allow it to be read, or move it elsewhere"
        ) from error


def _list_into(listing: Listing, folder: str, prefix: str, suffixes: frozenset[str]) -> None:
    for entry in scan(folder):
        name = entry.name
        if name[name.rfind(".") :] in suffixes and name[0] != "." and entry.is_file(follow_symlinks=False):
            listing.files.append(prefix + name)  # nearly all entries: what follows would cost as much again
        elif is_ignored(name):
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
                listing.tool_folders.append(prefix + name)
        elif entry.is_dir(follow_symlinks=False) or (not prefix and leads_down(entry, folder)):
            if holds_runs(entry.path):
                listing.tool_folders.append(prefix + name)
                continue
            _list_into(listing, entry.path, f"{prefix}{name}/", suffixes)
        elif not os.path.isdir(entry.path):  # a broken link is listed, and then found unreadable
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes:
                listing.files.append(prefix + name)
            else:
                listing.others[suffix] += 1


def leads_down(link: os.DirEntry[str], folder: str) -> bool:
    """Whether an entry of a folder is a link to another folder, and not to one that the folder lies in."""
    target, here = os.path.realpath(link.path), os.path.realpath(folder)
    return os.path.isdir(target) and os.path.commonpath([target, here]) != target


def images_in(folder: Path) -> list[Path]:
    """The image files of `list_images`."""
    return [folder / name for name in list_images(folder).files]


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, folders (searched through) and globs → image files, each once, in order.

    Raises:
        FileNotFoundError: a pattern matches nothing, a folder holds no images, or tar files alone.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path, tars = Path(pattern), False
        if path.is_dir():
            listing = list_images(path)
            matches, tars = [path / name for name in listing.files], ".tar" in listing.others
        elif path.is_file():
            matches = [path]
        else:
            # Second, with the folder taken as it is: names such as "scan [1]" look like patterns.
            literal = str(Path(glob.escape(str(path.parent))) / path.name)
            names = glob.glob(pattern, recursive=True) or glob.glob(literal)
            matches = sorted(p for p in map(Path, names) if p.is_file())
        if matches and all(match.suffix.lower() == ".tar" for match in matches):
            matches, tars = [], True
        if not matches:
            raise FileNotFoundError(
                f"no image at {pattern!r}, only tar files: atconv train, evaluate and probe read shards; "
                "unpack them for this command"
                if tars
                else f"no image at {pattern!r}: give files, folders or globs of images, such as .jpg or .png"
            )
        files.update(dict.fromkeys(matches))
    return list(files)


def as_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Convert any PIL image to 8-bit RGB or gray."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def stored_geometry(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation, 1 to 8, of an image that is not decoded yet."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    width, height = image.size
    # Pillow turns a TIFF itself, and gives its size turned from the start.
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_ORIENTATION) in range(5, 9):
        width, height = height, width
    return (width, height), orientation if orientation in range(1, 9) else 1


def upright(image: Image.Image, mode: Mode) -> Image.Image:
    """Turn an open PIL image by its EXIF orientation and convert it."""
    return as_mode(ImageOps.exif_transpose(image), mode)


class PrepareImage:
    """First step of a transform: any PIL image → the mode a model of `in_chans` channels reads."""

    def __init__(self, in_chans: int) -> None:
        self.mode = mode_for(in_chans)

    def __call__(self, image: Image.Image) -> Image.Image:
        return upright(image, self.mode)

    def __repr__(self) -> str:
        return f"PrepareImage({self.mode})"


def preparation(mode: Mode) -> list[str]:
    """What `read_image` does, step by step, for programs that must do the same."""
    return [
        "turn the image upright by its EXIF orientation",
        "16-bit and 32-bit gray to 8 bits, rounded: integers are 0…65535; floats 0…1, 0…255 or "
        "0…65535, whichever is the smallest that holds the finite ones; NaN is 0",
        "lay transparent pixels on white, those of palettes too",
        f"convert to {mode} as Pillow does, also from CMYK, palette and gray",
    ]


def mode_for(in_chans: int) -> Mode:
    """The PIL mode of a model's input.

    Raises:
        ValueError: images have 1 or 3 channels.
    """
    if in_chans not in (1, 3):
        raise ValueError(f"images are read with in_chans 3 (color) or 1 (gray), got {in_chans}")
    return "RGB" if in_chans == 3 else "L"


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Integers span 0…65535 (PNG's 16 bits, also where PIL widens them to 32). Floats are taken as
    0…1, 0…255 or 0…65535, whichever is the smallest that holds those that are finite; NaN is black."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0
    if image.mode == "F":
        peak = values[np.isfinite(values)].max(initial=0.0)
        top = 1.0 if peak <= 1 else 255.0 if peak <= 255 else 65535.0
    levels = np.nan_to_num(np.rint(values * (255.0 / top)))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names the open file object
        return "not in an image format"
    return str(error).partition("\n")[0][:160] or type(error).__name__
