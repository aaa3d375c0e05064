"""Image files of every kind that differs in how it must be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

KINDS = [
    *(f"exif-{i}" for i in range(1, 9)), "rgba", "gray-alpha", "16-bit", "palette", "palette-transparent",
    "rgb-transparent", "gray", "bits", "cmyk", "float-0-1", "float-0-255", "float-0-65535", "32-bit",
]  # fmt: skip


def saved_image(kind: str, folder: Path) -> Path:
    """An image file of a kind, 37 × 29."""
    noise = np.random.default_rng(0)
    color = Image.fromarray(noise.integers(0, 256, (29, 37, 3), dtype=np.uint8))
    alpha = Image.fromarray(noise.integers(0, 256, (29, 37), dtype=np.uint8))
    sixteen = noise.integers(0, 65536, (29, 37), dtype=np.uint16)
    palette, name, options = color.quantize(16), f"{kind}.png", {}
    if kind.startswith("exif"):
        exif = Image.Exif()
        exif[0x0112] = int(kind[-1])
        name, options = f"{kind}.jpg", {"exif": exif}
    with_alpha = color.copy()
    with_alpha.putalpha(alpha)
    images = {
        "rgba": with_alpha,
        "gray-alpha": with_alpha.convert("LA"),
        "16-bit": Image.fromarray(sixteen),
        "palette": palette,
        "palette-transparent": palette,
        "rgb-transparent": color,
        "gray": alpha,
        "bits": alpha.convert("1"),
        "cmyk": color.convert("CMYK"),
        "float-0-1": Image.fromarray(noise.random((29, 37), dtype=np.float32)),
        "float-0-255": Image.fromarray(255 * noise.random((29, 37), dtype=np.float32)),
        "float-0-65535": Image.fromarray(65535 * noise.random((29, 37), dtype=np.float32)),
        "32-bit": Image.fromarray(sixteen.astype(np.int32)),
    }
    if kind == "palette-transparent":
        options = {"transparency": bytes(range(0, 256, 16))}
    if kind == "rgb-transparent":
        options = {"transparency": color.getpixel((3, 3))}
    if kind == "cmyk":
        name = f"{kind}.jpg"
    if kind.startswith(("float", "32-bit")):
        name = f"{kind}.tif"
    images.get(kind, color).save(folder / name, **options)
    return folder / name
