"""λ of a model's ATConv mixers over training."""

from __future__ import annotations

from typing import Any

from atconv.engine.callbacks import FileWriter
from atconv.engine.trainer import Trainer
from atconv.io import read_rows, write_rows
from atconv.modules import inhibition_strength

__all__ = ["InhibitionLogger"]


class InhibitionLogger(FileWriter):
    """inhibition.csv: λ of every ATConv mixer by epoch; no file for a model without any.

    A row has its mean, min and max over channels, and each channel's in thousandths.
    """

    def write(self, trainer: Trainer) -> None:
        path = trainer.run.path / "inhibition.csv"
        rows: list[dict[str, Any]] = [
            row for row in read_rows(path, {"epoch": int}) if row["epoch"] < trainer.epoch
        ]
        rows += [
            {
                "epoch": trainer.epoch,
                "layer": name,
                "mean": float(strength.mean()),
                "min": float(strength.min()),
                "max": float(strength.max()),
                "channels": " ".join(str(round(1000 * value)) for value in strength.tolist()),
            }
            for name, strength in inhibition_strength(trainer.ema_model).items()
        ]
        write_rows(path, rows)
