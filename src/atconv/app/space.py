"""A folder that is a Hugging Face Space: the page, and the models of some runs without their data."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from atconv import __version__
from atconv.app.describe import metrics_line, model_line, shown_metrics
from atconv.app.examples import validation_images
from atconv.engine.predictor import Predictor
from atconv.engine.run import unique_names
from atconv.extras import name_missing_extra
from atconv.io import count_of
from atconv.tasks import load

__all__ = ["write_space"]

logger = logging.getLogger(__name__)

# A model's own files. config.yaml and split.json are not among them: they name files of this machine.
_MODEL_FILES = ("config.json", "model.safetensors", "model_index.json", "scheduler", "transformer", "vae")
_EXTRAS = {"detection": "dense", "segmentation": "dense", "generation": "generation"}

_APP = '''"""The page of this Space. Elsewhere: pip install -r requirements.txt; python app.py"""

from pathlib import Path

from atconv.app import serve

here = Path(__file__).parent
serve(
    {runs},
    examples=here / "examples",
    max_upload_mb={max_upload_mb:g},
    max_megapixels={max_megapixels:g},
)
'''

_README = """---
title: {title}
emoji: 🔬
colorFrom: indigo
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
---

{lines}

{examples}

{package}
"""


@name_missing_extra()
def write_space(
    runs: Sequence[str | Path],
    folder: str | Path,
    examples: int = 0,
    max_upload_mb: float = 20,
    max_megapixels: float = 50,
) -> Path:
    """Write the page of some runs as a Hugging Face Space: app.py, requirements.txt, README.md, the models,
    this package where no index has it, and images of the runs' data where `examples` asks for some.

    Args:
        runs: their folders.
        folder: a new one, or an empty one.
        examples: how many validation images are copied, for everybody to see.
        max_upload_mb, max_megapixels: as in `running_page`.

    Returns:
        app.py.

    Raises:
        FileNotFoundError, ValueError: no such run, a run without a model, or a folder that holds something.
    """
    out = Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "not empty" if out.is_dir() else "a file"
        raise ValueError(f"{out} is {what}: name a new folder with --export")
    predictors = {name: load(run) for name, run in unique_names(runs).items()}
    images = validation_images(predictors, examples)
    gradio = version("gradio")
    places = {name: f"models/{i}-{Path(name).name}" for i, name in enumerate(predictors, 1)}
    for name, predictor in predictors.items():
        _copy_model(predictor, out / places[name])
    if images:
        (out / "examples").mkdir()
    for i, image in enumerate(images, 1):
        image.save(out / "examples" / f"{i:02d}.png")
    extras = sorted({"app", *(_EXTRAS[p.task] for p in predictors.values() if p.task in _EXTRAS)})
    package = _add_package(out, extras)
    (out / "README.md").write_text(_readme(predictors, len(images), gradio, package), encoding="utf-8")
    code = _APP.format(runs=_runs_code(places), max_upload_mb=max_upload_mb, max_megapixels=max_megapixels)
    (out / "app.py").write_text(code, encoding="utf-8")
    copied = count_of(len(images), "image") if images else "no images (--examples N copies some)"
    logger.info("%s holds the models and %s of their data; try it: python %s", out, copied, out / "app.py")
    return out / "app.py"


def _copy_model(predictor: Predictor[Any, Any], target: Path) -> None:
    target.mkdir(parents=True)
    for name in _MODEL_FILES:
        source = predictor.run.path / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.is_file():
            shutil.copyfile(source, target / name)
    if metrics := shown_metrics(predictor):
        (target / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def _add_package(out: Path, extras: Sequence[str]) -> str:
    """Write requirements.txt, and the package itself where it was not installed from an index; say which.

    The package comes as a folder: a Space is installed before its files are there, so that requirements.txt
    cannot name one of them.
    """
    package = distribution("atconv")
    lines, about = [f"atconv[{','.join(extras)}]=={__version__}"], "`requirements.txt` names it"
    if package.read_text("direct_url.json") is not None:  # pip's note of a folder, file or address
        here = Path(__file__).parents[1]
        shutil.copytree(here, out / "atconv", ignore=shutil.ignore_patterns("__pycache__"))
        needed = map(Requirement, package.requires or [])
        wanted = [r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]
        for requirement in wanted:
            requirement.marker = None
        lines, about = sorted({str(each) for each in wanted}), "it is in `atconv/`, as it was installed"
    (out / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"It runs on atconv {__version__}: {about}."


def _runs_code(places: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: here / {place!r}" for name, place in places.items()) + "}"


def _readme(predictors: Mapping[str, Predictor[Any, Any]], examples: int, gradio: str, package: str) -> str:
    lines = []
    for name, predictor in predictors.items():
        about = ". ".join(filter(None, [model_line(predictor), metrics_line(predictor)]))
        lines.append(f"- **{name}**: {predictor.task}, {about}.")
    copied = (
        f"`examples/` holds {count_of(examples, 'image')} of the validation data."
        if examples
        else "It holds no images of the data that the models were trained on."
    )
    return _README.format(
        title=json.dumps(", ".join(predictors)[:80], ensure_ascii=False),  # in YAML as in JSON
        gradio=gradio,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        lines="\n".join(lines),
        examples=copied,
        package=package,
    )
