"""What the page says of a run: its name, task, model and metrics."""

from __future__ import annotations

from html import escape
from typing import Any

from atconv.engine.predictor import Predictor
from atconv.engine.reading import read_json
from atconv.io import count_of
from atconv.tasks.common.metric_names import metric_name

__all__ = ["card", "metrics_line", "model_line", "shown_metrics"]

# The first three of these that are in a run's metrics.json are shown.
_PERCENTAGES = (
    "top1", "top5", "balanced_accuracy", "macro_f1", "map", "box_map", "box_map_50", "mask_map", "miou",
    "pixel_accuracy",
)  # fmt: skip


def card(name: str, predictor: Predictor[Any, Any]) -> str:
    """HTML of a run's name, model and metrics."""
    lines = [f"{predictor.task.capitalize()} · {model_line(predictor)}", metrics_line(predictor)]
    texts = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return f"<div class='run'><h2>{escape(name)}</h2>{texts}</div>"


def model_line(predictor: Predictor[Any, Any]) -> str:
    """Architecture, size and classes of a run's model."""
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters()) / 1e6
    parts = [_architecture(predictor), f"{parameters:.2g} M parameters"]
    if predictor.classes:
        parts.append(count_of(len(predictor.classes), "class", "classes"))
    return ", ".join(parts)


def _architecture(predictor: Predictor[Any, Any]) -> str:
    content = read_json(predictor.run.model_config, {}) if predictor.run.model_config.is_file() else {}
    if "architecture" in content:
        return str(content["architecture"])
    saved = content.get("_atconv", content)
    for part in (saved.get("detector"), saved.get("segmenter")):
        if part is not None:
            return f"{part['architecture']} on {part['backbone']}"
    return str(getattr(predictor.config, "model", type(predictor.model).__name__))


def shown_metrics(predictor: Predictor[Any, Any]) -> dict[str, Any]:
    """The part of a run's metrics.json that the page shows; empty where there is none."""
    if not predictor.run.metrics.is_file():
        return {}
    content = predictor.read_metrics(predictor.run.metrics)
    values = content | content.get("coco", {})
    names = [name for name in _PERCENTAGES if isinstance(values.get(name), (int, float))][:3]
    about = {name: content[name] for name in ("split", "images") if name in content}
    return about | {name: values[name] for name in names} if names else {}


def metrics_line(predictor: Predictor[Any, Any]) -> str:
    """The metrics of a run's last evaluation in training, on which images; "" where there are none."""
    metrics = shown_metrics(predictor)
    values = [f"{metric_name(name)} {metrics[name]:.1f} %" for name in _PERCENTAGES if name in metrics]
    if not values:
        return ""
    split, images = metrics.get("split", "test"), metrics.get("images")
    counted = f" of {count_of(images, 'image')}" if isinstance(images, int) else ""
    return f"{', '.join(values)} ({split} split{counted})"
