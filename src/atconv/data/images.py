"""Images as files have them → PIL images of one kind, alike in training and prediction."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from atconv.io import check_file

__all__ = [
    "PrepareImage",
    "image_suffixes",
    "open_image",
    "opened_image",
    "plugin_advice",
    "preparation",
    "read_image",
    "stored_geometry",
    "upright",
]

Mode = Literal["RGB", "L"]

_HEIF = {".heic", ".heif", ".hif"}
_ORIENTATION = 0x0112  # in EXIF
# Files that Pillow opens without decoding them, and PostScript, for which it starts another program.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


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
    Image.preinit()  # the common formats first: Image.open tries them in this order
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def plugin_advice(suffixes: Iterable[str]) -> str:
    """How to read files of some suffixes that are not read here; empty where there is no way."""
    missing = {suffix.lower() for suffix in suffixes} & _HEIF - image_suffixes()
    return f"; for {', '.join(sorted(missing))}: pip install 'atconv[heif]'" if missing else ""


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
