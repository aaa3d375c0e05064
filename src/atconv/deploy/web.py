"""The page that runs a model in a browser: its own files, and onnxruntime-web, fetched once by npm."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

__all__ = ["RUNTIME_VERSION", "cached_runtime", "fetch_runtime", "page_files"]

logger = logging.getLogger(__name__)

RUNTIME_VERSION = "1.30.0"
_PACKAGE = f"onnxruntime-web@{RUNTIME_VERSION}"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_PAGE = ("index.html", "page.js", "prepare.js", "views.js")
_SECONDS = 600  # of npm
_OTHERWISE = "or name a folder that has its files with --onnxruntime-web"


def page_files(runtime: str | Path | None = None) -> list[Path]:
    """The files that go with model.onnx and export.json in the folder of a page.

    Args:
        runtime: onnxruntime-web as npm installs it, or its folder dist; npm fetches it by default.

    Raises:
        FileNotFoundError: the folder does not have its files, or npm is missing.
        RuntimeError: npm could not fetch it, or it is not what was published.
    """
    folder = fetch_runtime() if runtime is None else _runtime_in(Path(runtime))
    own = Path(__file__).with_name("page")
    return [*(own / name for name in _PAGE), *(folder / name for name in _RUNTIME)]


def cached_runtime() -> Path:
    """Where `fetch_runtime` keeps it: in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "atconv" / f"onnxruntime-web-{RUNTIME_VERSION}"


def fetch_runtime() -> Path:
    """The folder of onnxruntime-web, fetched by npm where it is not there yet. Raises as `page_files`."""
    folder = cached_runtime()
    if all((folder / name).is_file() for name in _RUNTIME):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm is missing, which fetches {_PACKAGE}: install Node.js, {_OTHERWISE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.info("fetching %s with npm, 33 MB", _PACKAGE)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as name:
        archive = _pack(npm, Path(name))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != _SHA512:
            raise RuntimeError(f"npm gave another {_PACKAGE} than was published (sha512 {digest[:12]}…)")
        with tarfile.open(archive) as packed:
            for file in _RUNTIME:
                content = packed.extractfile(f"package/dist/{file}")
                assert content is not None
                (Path(name) / file).write_bytes(content.read())
        folder.mkdir(exist_ok=True)
        for file in _RUNTIME:
            os.replace(Path(name) / file, folder / file)
    return folder


def _pack(npm: str, folder: Path) -> Path:
    """The package's archive, fetched into a folder."""
    command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--fetch-retries=1"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
        reason = next((line for line in done.stderr.splitlines() if "npm error" in line), "no reason given")
    except subprocess.TimeoutExpired:
        done, reason = None, f"no answer in {_SECONDS} s"
    archives = list(folder.glob("*.tgz"))
    if done is None or done.returncode or not archives:
        raise RuntimeError(f"npm cannot fetch {_PACKAGE} ({reason}): look at the network, {_OTHERWISE}")
    return archives[0]


def _runtime_in(folder: Path) -> Path:
    for each in (folder, folder / "dist"):
        if all((each / name).is_file() for name in _RUNTIME):
            return each
    raise FileNotFoundError(
        f"{folder} does not have {' and '.join(_RUNTIME)}: give the folder node_modules/onnxruntime-web that "
        f"npm install {_PACKAGE} makes"
    )
