from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atconv.app.server import running_page
from support.browser import browser
from support.tiny import trained_run
from support.tiny_app import MEGABYTES, MEGAPIXELS
from support.tiny_dense import detection_run, segmentation_run
from support.tiny_sit import generation_run


@pytest.fixture(scope="session")
def runs() -> dict[str, Path]:
    return {
        "digits": trained_run(),
        "digits <b>again": trained_run(),
        "boxes": detection_run(),
        "masks": segmentation_run(),
        "new digits": generation_run(),
    }


@pytest.fixture(scope="session")
def server(runs: dict[str, Path]) -> Iterator[Any]:
    """The page of a run of each task, and of one twice."""
    with running_page(
        runs, examples=4, device="cpu", max_upload_mb=MEGABYTES, max_megapixels=MEGAPIXELS
    ) as page:
        yield page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened
