"""Files that strangers upload: read as images, or rejected with a line for the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from atconv.data.images import opened_image, upright

__all__ = ["read_upload"]

_MAX_SIDE = 2048  # pixels: masks of a detector take as many bytes for each object


def read_upload(upload: Any, max_megapixels: float) -> tuple[Image.Image, str]:
    """An uploaded image, upright and in color, and what a person should know of it, or "".

    Args:
        upload: a file as Gradio describes it: its path and the name that it had. Images in other forms, such
            as data in a URL, are not taken: their size would not be known before they are decoded.
        max_megapixels: more than these are not decoded.

    Raises:
        ValueError: it is no readable image, or has too many pixels.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str):
        raise ValueError("no image was sent: upload a file")
    name = Path(str(upload.get("orig_name") or path)).name
    try:
        image, (width, height) = _decode(path, max_megapixels)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    if max(image.size) <= _MAX_SIDE:
        return image, ""
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return image, f"made smaller, from {width} × {height} to {image.width} × {image.height} pixels"


def _decode(path: str, max_megapixels: float) -> tuple[Image.Image, tuple[int, int]]:
    """The image, and its size as stored."""
    # Opened here, so that messages do not name folders of this machine.
    with open(path, "rb") as file, opened_image(file) as image:
        width, height = image.size
        few = width * height <= max_megapixels * 1e6
        turned = upright(image, "RGB") if few else None
    if turned is None:
        raise ValueError(
            f"{width} × {height} pixels are {width * height / 1e6:.0f} megapixels; up to {max_megapixels:g} "
            "are taken: make it smaller"
        )
    return turned, (width, height)
