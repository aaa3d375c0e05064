"""Write the first test images of Fashion-MNIST as PNG: python studies/mixers/pictures.py DATA_ROOT OUT"""

from __future__ import annotations

import sys
from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.transforms.functional import to_pil_image

COUNT = 64


def main(data_root: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(FashionMNIST(data_root, train=False).data[:COUNT]):
        to_pil_image(image).save(out / f"{index:02d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
