"""How good a detector is: COCO's mean average precision, of boxes and of masks, and by class.

torchmetrics computes all of it. Its own synchronization gathers list states element by element, which needs
as many images on every process: states are gathered as objects here instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from atconv.data.boxes.split import BadAnnotations
from atconv.engine.options import Percent
from atconv.engine.tables import Table, over_classes, percent_text
from atconv.tasks.common.annotated_predictor import AnnotatedMetrics
from atconv.tasks.common.metric_names import metric_name
from atconv.tasks.detection.data import Target

__all__ = ["DetectionMetrics", "compute_metrics", "mean_average_precision"]

_NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics(AnnotatedMetrics):
    """Metrics of one detector on one split, in percent; None where there is nothing to measure."""

    coco: dict[str, Percent | None]
    """COCO's, prefixed with "box_" for those of boxes and "mask_" for those of masks"""
    bad_annotations: BadAnnotations = "reject"
    """what was done with annotations that are wrong"""

    @property
    def box_map(self) -> float | None:
        """Mean average precision of boxes, over IoU 0.5 … 0.95."""
        return self.coco["box_map"]

    @property
    def box_map_50(self) -> float | None:
        """That of boxes at IoU 0.5."""
        return self.coco["box_map_50"]

    @property
    def mask_map(self) -> float | None:
        """That of masks; None where the detector gives none."""
        return self.coco.get("mask_map")

    @property
    def mask_map_50(self) -> float | None:
        return self.coco.get("mask_map_50")

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"bad_annotations": self.bad_annotations}

    def tables(self, title: str) -> list[Table]:
        absent = [row["class"] for row in self.per_class if row["box_map"] is None]
        rows = [(metric_name(name), percent_text(value)) for name, value in self.coco.items()]
        rows[0] = (rows[0][0], rows[0][1] + over_classes(len(self.per_class), absent))
        rows += self.last_rows()
        columns = [name for name in self.per_class[0] if name != "class"]
        cells = [[row["class"], *(percent_text(row[name]) for name in columns)] for row in self.per_class]
        headers = ("class", *map(metric_name, columns))
        return [Table(title, ("metric", "value"), rows), Table("classes", headers, cells)]


def mean_average_precision(
    model: nn.Module, batches: Iterable[tuple[list[Tensor], list[Target]]], masks: bool
) -> dict[str, float]:
    """COCO's mean average precision in percent: map and map_50 of boxes, and mask_map for masks.

    Several processes give each their own batches, and all get the metrics of all of them.
    """
    metric = _measure(model, batches, masks, class_metrics=False)
    for name, state in metric.metric_state.items():
        setattr(metric, name, gather_object(state))
    values = metric.compute()
    prefixes = dict(_prefixes(masks))
    names = {"map": f"{prefixes['box']}map", "map_50": f"{prefixes['box']}map_50"}
    names |= {"mask_map": f"{prefixes['mask']}map"} if masks else {}
    return {name: 100 * float(values[key]) for name, key in names.items()}


def compute_metrics(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[Target]]],
    classes: Sequence[str],
    masks: bool,
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """COCO's metrics by name, and rows by class."""
    values = _measure(model, batches, masks, class_metrics=True).compute()
    coco: dict[str, float | None] = {}
    per_class: list[dict[str, Any]] = [{"class": name} for name in classes]
    for kind, prefix in _prefixes(masks):
        coco |= {f"{kind}_{name}": _in_percent(values[f"{prefix}{name}"]) for name in _NAMES}
        by_class = values[f"{prefix}map_per_class"].reshape(-1)
        by_label = dict(zip(values["classes"].reshape(-1).tolist(), by_class, strict=True))
        for label, row in enumerate(per_class, 1):
            row[f"{kind}_map"] = _in_percent(by_label.get(label, torch.tensor(-1.0)))
    return coco, per_class


@torch.inference_mode()
def _measure(
    model: nn.Module, batches: Iterable[tuple[list[Tensor], list[Target]]], masks: bool, class_metrics: bool
) -> MeanAveragePrecision:
    """torchmetrics' metric of what a model detects in batches."""
    metric = MeanAveragePrecision(
        iou_type=("bbox", "segm") if masks else "bbox",
        class_metrics=class_metrics,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False
    device = next(model.parameters()).device
    for images, targets in batches:
        outputs = model([image.to(device, non_blocking=True) for image in images])
        metric.update([_detections(output, masks) for output in outputs], targets)
    return metric


def _detections(output: dict[str, Tensor], masks: bool) -> Target:
    detections: Target = {name: output[name].float().cpu() for name in ("boxes", "scores")}
    detections["labels"] = output["labels"].cpu()
    if masks:
        detections["masks"] = (output["masks"][:, 0] > 0.5).cpu()
    return detections


def _prefixes(masks: bool) -> list[tuple[str, str]]:
    """What is measured, and the prefix of its names in torchmetrics."""
    return [("box", "bbox_"), ("mask", "segm_")] if masks else [("box", "")]


def _in_percent(value: Tensor) -> float | None:
    """COCO says −1 where there was nothing to measure."""
    return None if value < 0 else 100 * float(value)
