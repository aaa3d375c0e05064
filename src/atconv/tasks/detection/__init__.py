"""Detection and instance segmentation: boxes, names and masks of objects. `atconv detect`."""

from __future__ import annotations

from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.spec import Publication, TaskSpec

__all__ = ["SPEC", "DetectionConfig"]


SPEC = TaskSpec(
    name="detection",
    command="detect",
    config=DetectionConfig,
    data="a folder with images and boxes, in COCO's, YOLO's or Pascal VOC's format",
    inherit_config=inherit_config,
    annotation="boxes",
    panel="DetectionPanel",
    evaluation_writes=("predictions.png",),
    publication=Publication(
        pipeline_tag="object-detection",
        image_plots={"predictions.png": "Predictions"},
        metrics={
            "box_map": ("mAP", " %"),
            "box_map_50": ("mAP_50", " %"),
            "mask_map": ("mask_mAP", " %"),
            "mask_map_50": ("mask_mAP_50", " %"),
        },
        limits=("Objects of other classes are not detected, or are taken for one of these.",),
    ),
)
