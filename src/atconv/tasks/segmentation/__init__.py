"""Semantic segmentation: a class for every pixel. `atconv segment`."""

from __future__ import annotations

from atconv.tasks.common.annotated_config import inherit_config
from atconv.tasks.segmentation.config import SegmentationConfig
from atconv.tasks.spec import Publication, TaskSpec

__all__ = ["SPEC", "SegmentationConfig"]


SPEC = TaskSpec(
    name="segmentation",
    command="segment",
    config=SegmentationConfig,
    data="a folder with images and masks",
    inherit_config=inherit_config,
    annotation="masks",
    panel="SegmentationPanel",
    evaluation_writes=("confusion.png", "predictions.png"),
    publication=Publication(
        pipeline_tag="image-segmentation",
        library="segmentation-models-pytorch",
        plots={"confusion.png": "Confusion matrix", "curves.png": "Learning curves"},
        image_plots={"predictions.png": "Predictions"},
        metrics={"miou": ("mean_iou", " %"), "pixel_accuracy": ("accuracy", " %")},
        intervals="intervals by bootstrap over images, 1000 resamples",
        libraries=(
            "import atconv\nimport segmentation_models_pytorch as smp\n\n"
            'model = smp.from_pretrained("{name}").eval()  # logits of normalized images',
        ),
        limits=("Every pixel gets one of its classes, also where none fits.",),
    ),
)
