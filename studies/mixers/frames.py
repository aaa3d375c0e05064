"""Draw frames.png, the first frames of cued garments: python studies/mixers/frames.py DATA_ROOT"""

from __future__ import annotations

import sys
from pathlib import Path

from atconv.data.cued_garments import draw_frame, load_material
from atconv.plots import plt, save

ROWS, COLUMNS = 2, 6


def main(data_root: Path) -> None:
    material = load_material(data_root, "train")
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(12, 4.6), layout="constrained")
    for index, axis in enumerate(axes.flat):
        frame = draw_frame(material, seed=0, side=0, index=index)
        axis.imshow(frame.pixels, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"digit {frame.cue}: {material.names[frame.label]}", fontsize=11)
        axis.set_axis_off()
    save(figure, Path(__file__).with_name("frames.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
