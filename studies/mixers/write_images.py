"""Write Fashion-MNIST's first test images as PNG: python -m studies.mixers.write_images DATA_ROOT OUT"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from studies.datasets.garments import load_garments

COUNT = 64


def main(data_root: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(load_garments(data_root, "test").images[:COUNT]):
        Image.fromarray(image).save(out / f"{index:02d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
