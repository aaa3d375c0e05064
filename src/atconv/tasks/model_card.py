"""The model card of a published run: README.md, with the front matter that Hugging Face reads."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from atconv.tasks.common.intervals import wilson_interval
from atconv.tasks.common.metric_names import metric_name
from atconv.tasks.spec import TaskSpec

__all__ = ["NO_LICENSE", "CardContent", "model_card"]

NO_LICENSE = "to-be-filled"
"""in place of a license: no license has this name, so Hugging Face rejects the card"""

_MAX_CLASSES = 100  # rows of the table by class
_FEW_IMAGES = 20  # of a class, below which the card warns
_WEIGHTS = ("checkpoint", "teacher_weights")  # options that name files of who trained it
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_USAGE = """```python
import atconv
from huggingface_hub import snapshot_download

predictor = atconv.load(snapshot_download("{name}"))  # or a folder with these files
{call}
```"""


@dataclass(frozen=True)
class CardContent:
    """What a card says."""

    spec: TaskSpec
    name: str
    """USER/NAME, or the name of a folder"""
    license: str | None
    dataset: str
    """name of the data; USER/NAME where it is a data set on Hugging Face"""
    classes: Sequence[str]
    parameters: int
    recipe: Mapping[str, Any]
    """options that the run was trained with"""
    sizes: Mapping[str, int]
    """images by split"""
    metrics: Mapping[str, Any]
    """of the run's own metrics.json"""
    evaluations: Sequence[tuple[str, Mapping[str, Any]]] = ()
    """others, by the name of their folder, which is that of their data and split"""
    plots: Mapping[str, str] = field(default_factory=dict)
    """title by file"""

    @property
    def hub_dataset(self) -> str | None:
        """The data set on Hugging Face, if it is one."""
        return self.dataset if _HUB_NAME.fullmatch(self.dataset) else None

    def rows(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
        """(name, Hugging Face's name, value, text) of the task's main metrics that are there."""
        values = {**metrics, **metrics.get("coco", {})}
        rows = []
        for name, (kind, unit) in self.spec.publication.metrics.items():
            value, interval = values.get(name), values.get(f"{name}_interval")
            if isinstance(value, (int, float)) and not metrics.get("no_verdict"):
                text = f"{value:.4g}{unit}"
                text += f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
                rows.append((metric_name(name), kind, round(float(value), 4), text))
        return rows


def model_card(content: CardContent) -> ModelCard:
    """The card. Its text is Markdown; names from people are escaped."""
    sections = [
        f"# {_escape(content.name.rpartition('/')[2])}",
        _summary(content),
        f"## Use\n\n{_usage(content)}",
        f"## Data\n\n{_data(content)}",
        f"## Metrics\n\n{_metrics(content)}",
        *(f"![{title}]({file})" for file, title in content.plots.items()),
        _by_class(content),
        f"## Limits\n\n{_limits(content)}",
        f"## Train it again\n\n{_reproduce(content)}",
        f"## License\n\n{content.license or 'To be filled in, here and above.'}",
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_front_matter(content).to_yaml()}\n---\n\n{body}\n")


def _front_matter(content: CardContent) -> ModelCardData:
    about = content.spec.publication
    own = content.dataset, content.hub_dataset or "custom", content.metrics
    # Results of one type of data and one split are put under one name: each has a type of its own.
    # Hugging Face has no place for test-time augmentation.
    others = [
        (name, re.sub(r"[^\w.-]+", "-", name), each)
        for name, each in content.evaluations
        if each.get("tta", "none") == "none"
    ]
    results = [
        EvalResult(
            task_type=about.pipeline_tag,
            dataset_type=kind_of_data,
            dataset_name=data,
            dataset_split=metrics.get("split"),
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for data, kind_of_data, metrics in (own, *others)
        for name, kind, value, _ in content.rows(metrics)
    ]
    return ModelCardData(
        license=content.license or NO_LICENSE,
        library_name=about.library,
        pipeline_tag=about.pipeline_tag,
        tags=["atconv", "attentive-convolution", *([about.library] if about.library != "atconv" else [])],
        datasets=[content.hub_dataset] if content.hub_dataset else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=content.name.rpartition("/")[2],
        eval_results=results or None,
    )


def _summary(content: CardContent) -> str:
    config = content.recipe
    size = config.get("image_size")
    facts = [
        ("Task", content.spec.publication.pipeline_tag.replace("-", " ")),
        ("Model", f"{config.get('model', 'see config.json')}, {content.parameters:,} parameters"),
        ("Images", f"{size} × {size}" if size else ""),
        ("Channels", {1: "gray", 3: "color"}.get(config.get("in_chans", 0), "")),
        ("Started from", f"the weights {config['checkpoint']}" if config.get("checkpoint") else ""),
        ("Classes", f"{len(content.classes)}" if content.classes else "none"),
    ]
    paper = "[Attentive Convolution](https://arxiv.org/abs/2510.20092)"
    lines = "\n".join(f"- {name}: {_escape(text)}" for name, text in facts if text)
    return f"Trained with atconv ({paper}).\n\n{lines}"


def _usage(content: CardContent) -> str:
    about = content.spec.publication
    name = content.name if "/" in content.name else f"USER/{content.name}"
    own = _USAGE.format(name=name, call=about.call)
    mode = "L" if content.recipe.get("in_chans") == 1 else "RGB"
    others = [f"```python\n{each.format(name=name, mode=mode)}\n```" for each in about.libraries]
    return "\n\n".join([own, *others])


def _data(content: CardContent) -> str:
    if not content.sizes:
        return f"{_escape(content.dataset)}. How many images were used was not recorded."
    rows = [(split, f"{count:,}") for split, count in content.sizes.items()]
    return f"{_escape(content.dataset)}\n\n{_table(('split', 'images'), rows)}"


def _metrics(content: CardContent) -> str:
    parts = []
    for name, metrics in (("", content.metrics), *content.evaluations):
        rows = [(metric, text) for metric, _, _, text in content.rows(metrics)]
        if rows:
            split, images = metrics.get("split", "validation"), metrics.get("images")
            where = f"{_escape(name)}: " if name else ""
            counted = f", {images:,} images" if images else ""
            tta = metrics.get("tta", "none")
            counted += f", test-time augmentation: {tta}" if tta != "none" else ""
            parts.append(f"{where}{split} split{counted}\n\n{_table(('metric', 'value'), rows)}")
    if any("[" in part for part in parts):
        kind = content.spec.publication.intervals
        parts.append(f"In brackets: 95 % {kind}. They count chance in the choice of images alone.")
    return "\n\n".join(parts) or "Not measured."


def _by_class(content: CardContent) -> str:
    rows = list(content.metrics.get("per_class") or [])
    if not rows:
        return ""
    shown = rows[:_MAX_CLASSES]
    columns = [name for name in shown[0] if name != "class"]
    intervals = "recall" in columns and "images" in columns
    heads = ("class", *map(metric_name, columns), *(("recall, 95 %",) if intervals else ()))
    cells = [
        (row["class"], *(_cell(name, row[name]) for name in columns), *(_recall(row) if intervals else ()))
        for row in shown
    ]
    more = f"\n\nAll {len(rows)} classes are in per_class.csv." if len(rows) > len(shown) else ""
    return f"## By class\n\n{_table(heads, cells)}{more}"


def _recall(row: Mapping[str, Any]) -> Iterator[str]:
    count, recall = row["images"], row["recall"]
    known = count and recall is not None
    if known:
        low, high = wilson_interval(round(recall * count / 100), count)
    yield f"{low:.1f} – {high:.1f}" if known else "–"


def _limits(content: CardContent) -> str:
    metrics, about = content.metrics, content.spec.publication
    texts = [f"Trained on **{_escape(content.dataset)}** alone; images of other origin were not tried."]
    if metrics.get("split") == "val":
        texts.append("No test split: the images that it was measured on also chose the best epoch.")
    if isinstance(metrics.get("calibration_error"), float):
        texts.append(f"Its probabilities are off by {metrics['calibration_error']:.1f} points on average.")
    few = [row["class"] for row in metrics.get("per_class") or [] if 0 <= row.get("images", 99) < _FEW_IMAGES]
    if few:
        names = _escape(", ".join(few[:10])) + (" …" if len(few) > 10 else "")
        texts.append(f"Measured on fewer than {_FEW_IMAGES} images: {names}.")
    return "\n".join(f"- {text}" for text in [*texts, *about.limits])


def _reproduce(content: CardContent) -> str:
    program = f"atconv {content.spec.command}".strip()
    weights = [f"--{name.replace('_', '-')} WEIGHTS" for name in _WEIGHTS if content.recipe.get(name)]
    command = " ".join([f"{program} train DATA --config recipe.yaml", *weights])
    epoch = content.recipe.get("extended_at")
    extended = (
        f"The run was extended at epoch {epoch}, which this command does not repeat.\n\n" if epoch else ""
    )
    names = (
        "atconv",
        "torch",
        "timm",
        *(("diffusers",) if content.spec.publication.library == "diffusers" else ()),
    )
    versions = [f"{name} {version(name)}" for name in names]
    return (
        f"```bash\n{command}\n```\n\n{extended}"
        f"Published with {', '.join(versions)}, Python {platform.python_version()}."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    escaped = [line if i == 1 else [_escape(cell) for cell in line] for i, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    digits = 3 if column == "threshold" else 1  # of a share, and of percent
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    """Text as it is, in Markdown: no markup, one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
