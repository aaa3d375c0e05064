"""How sure a metric is."""

from __future__ import annotations

__all__ = ["wilson_interval"]


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, in percent."""
    from scipy.stats import binomtest  # predicting needs none of it

    interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)
