"""A web page on which people try trained runs: `atconv app RUN...`, and `serve` from Python."""

from atconv.app.server import serve

__all__ = ["serve"]
