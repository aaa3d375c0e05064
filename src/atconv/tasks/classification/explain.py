"""Plots that explain what a classifier says of single images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from atconv.analysis import collect_kernels, explain, explanation_layer, image_plots
from atconv.engine.predictor import ImageLike
from atconv.plots import DPI
from atconv.tasks.classification.analyze import Probe
from atconv.tasks.classification.classifier import ClassifierPredictor

__all__ = ["draw_kernels", "draw_support"]


def draw_support(predictor: ClassifierPredictor[Any], image: ImageLike) -> Image.Image | None:
    """The image above the places that support its predicted class: by Grad-CAM, or by attention rollout for a
    ViT. None for a model that has neither maps nor global self-attention, or of several labels an image."""
    if predictor.multi_label:
        return None
    probe = Probe.show(predictor, [image])
    layer = explanation_layer(predictor.model, probe.images)
    try:
        explanations = explain(predictor.model, probe.images, predictor.classes, layer)
    except ValueError:
        return None
    labels = [explanation.predicted for explanation in explanations]
    return _drawn(image_plots.plot_explanations(probe.pixels([0]), explanations, labels, layer))


def draw_kernels(predictor: ClassifierPredictor[Any], images: Sequence[ImageLike]) -> Image.Image | None:
    """One kernel of each layer for each image. None for a model without the operator."""
    probe = Probe.show(predictor, images)
    try:
        kernels = collect_kernels(predictor.model, probe.images)
    except ValueError:
        return None
    titles = [predictor.classes[label] for label in probe.predicted.tolist()]
    return _drawn(image_plots.plot_kernels_by_layer(probe.pixels(range(len(images))), titles, kernels))


def _drawn(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return Image.open(file)
