"""Write the first test images of Fashion-MNIST as PNG: python studies/mixers/pictures.py DATA_ROOT OUT"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from atconv.data.garments import load_garments

COUNT = 64


def main(data_root: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(load_garments(data_root, "test").pictures[:COUNT]):
        Image.fromarray(picture).save(out / f"{index:02d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
