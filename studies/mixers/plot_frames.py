"""Plot the first frames of cued garments to frames.png: python -m studies.mixers.plot_frames DATA_ROOT"""

from __future__ import annotations

import sys
from pathlib import Path

from atconv.plots import plt, save
from studies.datasets.cued_garments import load_parts, make_frame

ROWS, COLUMNS = 2, 6


def main(data_root: Path) -> None:
    parts = load_parts(data_root, "train")
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(12, 4.6), layout="constrained")
    for index, axis in enumerate(axes.flat):
        frame = make_frame(parts, seed=0, split=0, index=index)
        axis.imshow(frame.pixels, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"digit {frame.cue}: {parts.garments.classes[frame.label]}", fontsize=11)
        axis.set_axis_off()
    save(figure, Path(__file__).with_name("frames.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
