"""Image classification: `atconv train`."""

from __future__ import annotations

from atconv.tasks.classification.config import ClassificationConfig, inherit_config
from atconv.tasks.spec import Publication, TaskSpec

__all__ = ["SPEC", "TIMM_USAGE", "ClassificationConfig"]

TIMM_USAGE = """import atconv, timm  # atconv registers AttNet with timm
from PIL import Image

model = timm.create_model("hf-hub:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
inputs = transform(Image.open("image.jpg").convert("{mode}"))[None]
"""

SPEC = TaskSpec(
    name="classification",
    command="",
    config=ClassificationConfig,
    data="an image folder, a table of labels, an LMDB file, WebDataset shards, a timm dataset name "
    "(torch/..., hfds/...) or digits",
    inherit_config=inherit_config,
    annotation="labels",
    panel="ClassificationPanel",
    evaluation_writes=("predictions.csv", "confusion.png", "mistakes.png", "classes.png"),
    tools=("train", "evaluate", "predict", "study", "analyze", "embed", "neighbors", "probe", "export"),
    publication=Publication(
        pipeline_tag="image-classification",
        library="timm",
        plots={
            "confusion.png": "Confusion matrix",
            "classes.png": "Average precision and F1 by class",
            "curves.png": "Learning curves",
        },
        image_plots={"mistakes.png": "Worst mistakes"},
        metrics={
            "top1": ("accuracy", " %"),
            "top5": ("top_5_accuracy", " %"),
            "map": ("mean_average_precision", " %"),
            "balanced_accuracy": ("balanced_accuracy", " %"),
            "macro_f1": ("f1", " %"),
            "micro_f1": ("micro_f1", " %"),
            "exact_match": ("exact_match", " %"),
            "calibration_error": ("expected_calibration_error", " %"),
        },
        libraries=(
            TIMM_USAGE + "probabilities = model(inputs).softmax(1)[0]\n"
            'print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())',
            "import atconv\nfrom transformers import AutoModelForImageClassification\n\n"
            'model = AutoModelForImageClassification.from_pretrained("{name}")',
        ),
        limits=("A classifier of one class an image gives one for every image, also where none fits.",),
    ),
)
