"""What people call the tasks' metrics."""

from __future__ import annotations

import re

__all__ = ["metric_name"]

_WORDS = {
    "val": "validation",
    "ap": "AP",
    "map": "mAP",
    "mar": "mAR",
    "miou": "mIoU",
    "top1": "top-1",
    "top5": "top-5",
    "f1": "F1",
}


def metric_name(column: str) -> str:
    """What tables and plots call a column of metrics: box_map_50 is box mAP@50."""
    words = " ".join(_WORDS.get(word, word) for word in column.split("_"))
    return re.sub(r" (\d+)", r"@\1", words)
