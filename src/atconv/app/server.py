"""Start the page, on this machine or in a Hugging Face Space."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from atconv.app.examples import validation_images
from atconv.app.space import write_space
from atconv.data.images import read_image
from atconv.data.listing import images_in
from atconv.engine.options import NonNegativeInt, Port, Positive
from atconv.engine.predictor import Predictor
from atconv.engine.run import Runs, unique_names
from atconv.extras import name_missing_extra
from atconv.tasks import load

__all__ = ["app", "running_page", "serve"]

logger = logging.getLogger(__name__)

_EXAMPLES = 8


def app(
    runs: Sequence[str],
    host: str = "127.0.0.1",
    port: Port | None = None,
    share: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    examples: NonNegativeInt | None = None,
    max_upload_mb: Positive = 20,
    max_megapixels: Positive = 50,
    export: str | None = None,
) -> None:
    """Open a web page on which people try runs: classify, detect, segment, generate.

    Args:
        runs: folders of runs, of one task or several; an image goes through all of them.
        host: address to listen on; 0.0.0.0 for all of this machine's.
        port: to listen on; default: the first free one from 7860.
        share: make a public link through Gradio's servers, for a week.
        device: where the models run.
        examples: validation images of the runs to click on (default: 8, with --export none).
        max_upload_mb: largest file that is taken, in megabytes.
        max_megapixels: largest image that is decoded.
        export: folder to write a Hugging Face Space in, in place of opening the page.
    """
    if export is not None:
        write_space(runs, export, examples or 0, max_upload_mb, max_megapixels)
        return
    serve(
        runs,
        examples=_EXAMPLES if examples is None else examples,
        host=host,
        port=port,
        share=share,
        device=device,
        max_upload_mb=max_upload_mb,
        max_megapixels=max_megapixels,
    )


def serve(runs: Runs, **options: Any) -> None:
    """Open the page of some runs until it is interrupted or terminated; see `running_page`."""
    if threading.current_thread() is threading.main_thread():
        # As after Ctrl-C, uploads are deleted: otherwise the process would end at once.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with running_page(runs, **options) as page:
        logger.info("open %s (Ctrl-C ends it)", page.share_url or page.local_url)
        page.block_thread()


@contextmanager
def running_page(
    runs: Runs,
    *,
    examples: int | str | Path = _EXAMPLES,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    device: str = "auto",
    max_upload_mb: float = 20,
    max_megapixels: float = 50,
) -> Iterator[Any]:
    """The page of some runs, while it is open: a `gradio.Blocks` with its `local_url`.

    Uploads lie in a temporary folder of their own, which is removed at the end. Nothing is loaded from
    elsewhere, and nothing is reported.

    Args:
        runs: their folders, by the names that are shown, or without: then by their folders' names.
        examples: how many validation images to click on, or a folder of such images.
        host: address to listen on; default: GRADIO_SERVER_NAME, else 127.0.0.1.
        port: to listen on; default: GRADIO_SERVER_PORT, else the first free one from 7860.
        share: make a public link through Gradio's servers.
        device: where the models run.
        max_upload_mb: largest file that is taken, in megabytes.
        max_megapixels: largest image that is decoded.

    Raises:
        FileNotFoundError, ValueError: no such run or device, or a run without a model.
        OSError: the port is taken.
    """
    predictors = {name: load(run).to(device) for name, run in unique_names(runs).items()}
    shown = _examples(predictors, examples)
    with tempfile.TemporaryDirectory(prefix="atconv-app-") as folder, _sealed(folder):
        with name_missing_extra():
            from atconv.app.page import CSS, build_page, page_theme

        page = build_page(predictors, shown, max_megapixels)
        page.queue(max_size=64)
        if share:
            logger.warning("whoever knows the link can use this page, for a week or until it is closed")
        page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
            inline=False, max_file_size=int(max_upload_mb * 2**20), allowed_paths=[], footer_links=[],
            run_history=False, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
            theme=page_theme(), css=CSS,
        )  # fmt: skip
        try:
            yield page
        finally:
            page.close(verbose=False)


@contextmanager
def _sealed(folder: str) -> Iterator[None]:
    """Gradio reports nothing, keeps uploads in a folder, and fetches nothing from links that visitors send in
    place of files."""
    with name_missing_extra():
        import safehttpx  # what it fetches with

    async def reject(hostname: str) -> str:
        raise ValueError(f"this page takes files, no links such as to {hostname}")

    environment = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_EXAMPLES_CACHE": f"{folder}/examples",
        "GRADIO_ALLOWED_PATHS": "",
    }
    before, validate = {name: os.environ.get(name) for name in environment}, safehttpx.async_validate_url
    os.environ.update(environment)
    safehttpx.async_validate_url = reject
    try:
        yield
    finally:
        safehttpx.async_validate_url = validate
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _examples(predictors: Mapping[str, Predictor[Any, Any]], wanted: int | str | Path) -> list[Image.Image]:
    """Images to click on: of a folder, or of the validation splits of the runs, as far as they are there."""
    if not isinstance(wanted, int):
        folder = Path(wanted)
        return [read_image(file) for file in images_in(folder)] if folder.is_dir() else []
    return validation_images(predictors, wanted)
