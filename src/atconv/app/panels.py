"""What each run shows on the page, by its task."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
from PIL import Image

from atconv.app.describe import card
from atconv.engine.predictor import Predictor, Result
from atconv.io import first_few
from atconv.tasks import get_task

__all__ = ["GenerationPanel", "ImageOptions", "ImagePanel", "SampleOptions", "make_panel"]

_MIN_SIDE = 256  # pixels: smaller images are enlarged


@dataclass(frozen=True)
class ImageOptions:
    """What people choose for the results of an image."""

    top: int = 5
    threshold: float = 0.5
    explain: bool = False
    examples: Sequence[Image.Image] = ()
    """other images, to compare kernels with"""


@dataclass(frozen=True)
class SampleOptions:
    """What people choose for new images."""

    label: str | None
    """name of a class; None for one image of each, or of a model without classes"""
    count: int
    steps: int
    guidance: float
    seed: int


@dataclass
class _Panel:
    title: ClassVar[str]
    """of a page with this panel alone"""
    name: str
    predictor: Any
    outputs: list[Any] = field(default_factory=list)
    """the components that `results` are for"""

    def build(self) -> None:
        """Add the panel to the page, where the caller is."""
        with gr.Column(min_width=320):
            gr.HTML(card(self.name, self.predictor))
            self.outputs = self.make_outputs()

    def make_outputs(self) -> list[Any]:
        raise NotImplementedError

    def empty(self) -> list[Any]:
        """Values of the outputs where there is no result."""
        return [None] * len(self.outputs)


class ImagePanel(_Panel, ABC):
    """What a run says of an image."""

    @abstractmethod
    def results(self, image: Image.Image, options: ImageOptions) -> list[Any]:
        """Values of the outputs."""


class ClassificationPanel(ImagePanel):
    """Classes with their probabilities; where the prediction comes from, and the kernels."""

    title = "Classify an image"

    def make_outputs(self) -> list[Any]:
        label, note = gr.Label(label="Classes"), gr.HTML(visible=False)
        return [
            label,
            gr.Image(label="What supports the class", visible=False, **_PLOT),
            gr.Image(label="Kernels that the operator made", visible=False, **_PLOT),
            note,
        ]

    def empty(self) -> list[Any]:
        return [None, *[gr.update(value=None, visible=False)] * 3]

    def results(self, image: Image.Image, options: ImageOptions) -> list[Any]:
        [result] = self.predictor(image, top=options.top)
        classes = dict(zip(result.classes, result.probabilities, strict=True))
        lines = [self._thresholds()] if self.predictor.multi_label else []
        if not options.explain:
            return [classes, *self.empty()[1:3], _lines(lines)]
        from atconv.tasks.classification.explain import draw_kernels, draw_support

        plots = [
            draw_support(self.predictor, image),
            draw_kernels(self.predictor, [image, *options.examples]),
        ]
        if plots[0] is None:
            why = "it may give an image several" if self.predictor.multi_label else "its layers have no maps"
            lines.append(f"What supports the class is not shown: {why}.")
        if plots[1] is None:
            lines.append("Kernels are not shown: its model has no attentive convolution.")
        shown = [gr.update(value=plot, visible=plot is not None) for plot in plots]
        return [classes, *shown, _lines(lines)]

    def _thresholds(self) -> str:
        pairs = zip(self.predictor.classes, self.predictor.thresholds, strict=True)
        each = first_few([f"{name} {100 * threshold:.0f} %" for name, threshold in pairs], count=20)
        return f"An image may have several classes, or none: those from their thresholds on, {each}."


class DrawnPanel(ImagePanel):
    """The image with what was found in it, and a table."""

    title = "Look at an image"
    takes: ClassVar[tuple[str, ...]] = ()
    """the options that its predictor takes"""

    def make_outputs(self) -> list[Any]:
        return [gr.Image(label="Result", **_PLOT), self.make_table()]

    def make_table(self) -> Any:
        return gr.Dataframe(label="Objects", interactive=False, wrap=True, visible=False)

    def empty(self) -> list[Any]:
        return [None, gr.update(value=None, visible=False)]

    def results(self, image: Image.Image, options: ImageOptions) -> list[Any]:
        [result] = self.predictor(image, **{name: getattr(options, name) for name in self.takes})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "drawn.png"
            self.predictor.save_prediction(result, self.predictor.open_image(image), file)
            drawn = Image.open(file)
            drawn.load()
        return [drawn, self.table(result)]

    def table(self, result: Result) -> Any:
        columns = [name.capitalize() for name in result.columns()[1:]]
        rows = {"headers": columns, "data": [row[1:] for row in result.rows()]}
        return gr.update(value=rows, visible=True)


class DetectionPanel(DrawnPanel):
    """The image with its objects."""

    title, takes = "Detect objects", ("threshold",)


class SegmentationPanel(DrawnPanel):
    """The image with the classes of its pixels, and their shares."""

    title = "Segment an image"

    def make_table(self) -> Any:
        return gr.Label(label="Share of the image", show_heading=False)

    def empty(self) -> list[Any]:
        return [None, None]

    def table(self, result: Any) -> Any:
        return result.shares


class GenerationPanel(_Panel):
    """New images."""

    title = "Generate images"

    def make_outputs(self) -> list[Any]:
        return [gr.Gallery(show_label=False, columns=5, height="auto", format="png", buttons=["download"])]

    def results(self, options: SampleOptions) -> list[Any]:
        from atconv.tasks.generation.sampling import SamplerConfig

        sampler = SamplerConfig(steps=options.steps, guidance=options.guidance)
        each = options.label is None and self.predictor.classes
        labels = None if options.label is None else [options.label]
        made = self.predictor(
            labels, per_class=1 if each else options.count, options=sampler, seed=options.seed
        )
        return [[(_enlarged(image.pixels), image.label) for image in made]]


_PLOT: dict[str, Any] = {
    "format": "png", "interactive": False, "show_label": False, "buttons": ["download", "fullscreen"],
}  # fmt: skip


def make_panel(name: str, predictor: Predictor[Any, Any]) -> ImagePanel | GenerationPanel:
    """The panel of a run, which its task names."""
    panel: ImagePanel | GenerationPanel = globals()[get_task(predictor.task).panel](name, predictor)
    return panel


def _lines(lines: Sequence[str]) -> Any:
    """What to know of a result, below it."""
    texts = "".join(f"<p class='about'>{escape(line)}</p>" for line in lines)
    return gr.update(value=texts, visible=bool(lines))


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-_MIN_SIDE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
