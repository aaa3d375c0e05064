"""Metrics by epoch, and which epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["History"]


@dataclass
class History:
    """One row of metrics an epoch, read-only."""

    monitor: str | None
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Index of the epoch to keep. Of equals the last is taken: it has annealed longer."""
        scores = self._scores()
        return max(range(len(scores)), key=lambda i: (scores[i], i), default=-1)

    @property
    def usable(self) -> bool:
        """Whether there is an epoch to keep: one whose validation gave numbers."""
        return max(self._scores(), default=-math.inf) > -math.inf

    @property
    def improved(self) -> int:
        """Index of the last epoch that was better than all before it."""
        scores = self._scores()
        if self.monitor is None:
            return len(scores) - 1
        return max(range(len(scores)), key=lambda i: (scores[i], -i), default=-1)

    @property
    def kept(self) -> str:
        """The epoch to keep, for people; where it equals an earlier one, that one too."""
        best, improved = self.best + 1, self.improved + 1
        return f"{best}" if best == improved else f"{best} (equal to epoch {improved})"

    def _scores(self) -> list[float]:
        scores = (0.0 if self.monitor is None else row[self.monitor] for row in self.rows)
        finite = (math.isfinite(row.get("val_loss", 0.0)) for row in self.rows)
        return [
            score if good and math.isfinite(score) else -math.inf
            for score, good in zip(scores, finite, strict=True)
        ]
