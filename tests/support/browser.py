"""Chromium, and a folder served to it."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = (
    "--no-sandbox --disable-quic --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)


def skip_or_fail(reason: str) -> None:
    """Where something that continuous integration installs is missing: a failure there, a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, which .ci/run installs")
    pytest.skip(reason)


_opened: list[Any] = []


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium: the one that is open, since a process can only have one."""
    from playwright.sync_api import sync_playwright

    if _opened:
        yield _opened[0]
        return
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        skip_or_fail("chromium is not installed")
    with sync_playwright() as playwright:
        _opened.append(playwright.chromium.launch(executable_path=program, args=_OPTIONS.split()))
        yield _opened[0]
        _opened.pop().close()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as `python -m http.server` serves it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
