"""The page: an image goes through all runs, and generators make new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from atconv import __version__
from atconv.app.panels import GenerationPanel, ImageOptions, ImagePanel, SampleOptions, make_panel
from atconv.app.uploads import read_upload
from atconv.engine.predictor import Predictor

__all__ = ["CSS", "build_page", "page_theme"]

_MAX_SAMPLES, _MAX_STEPS, _MAX_GUIDANCE = 16, 250, 10.0
_EACH = "one of each class"
_COMPARED = 3  # examples whose kernels are shown next to an image's
_HINT = "Choose an image: each run says what it sees."

CSS = """
.gradio-container { max-width: 84rem !important; margin: 0 auto }
.gradio-container h1 { font-size: 1.5rem; margin: .5rem 0 0 }
.about, .run p { color: var(--body-text-color-subdued) }
.run h2 { font-size: 1.1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere }
.run p { margin: .1rem 0 0; font-size: .85rem; overflow-wrap: anywhere }
.note { font-size: .9rem; min-height: 1.4em; overflow-wrap: anywhere }
.note.error { color: var(--error-text-color); font-weight: 600 }
.images { display: grid; grid: "given answers" auto "more answers" 1fr / minmax(0, 1fr) minmax(0, 2fr) }
@media (max-width: 960px) { .images { grid: "given" "answers" "more" / minmax(0, 1fr) } }
.given { grid-area: given } .answers { grid-area: answers } .more { grid-area: more }
.upload .image-frame img { width: 100%; height: 100%; object-fit: contain }
:is(.output-class, dt.text, td, th) { overflow-wrap: anywhere; white-space: normal }
"""


def page_theme() -> Any:
    """Fonts of the visitor's system: nothing is loaded from elsewhere."""
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


def build_page(
    predictors: Mapping[str, Predictor[Any, Any]], examples: Sequence[Image.Image], max_megapixels: float
) -> Any:
    """The page of some runs, a `gradio.Blocks`.

    Args:
        predictors: from `atconv.load`, by the names that are shown.
        examples: images to click on.
        max_megapixels: of an image; larger ones are not decoded.
    """
    every = [make_panel(name, predictor) for name, predictor in predictors.items()]
    generators = [panel for panel in every if isinstance(panel, GenerationPanel)]
    panels = [panel for panel in every if isinstance(panel, ImagePanel)]
    title = every[0].title if len(every) == 1 else f"{len(every)} runs side by side"
    with gr.Blocks(
        title=f"{title}: {', '.join(predictors)}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>")
        if panels and generators:
            with gr.Tab("Images"):
                _add_images(panels, examples, max_megapixels)
            with gr.Tab("Generate"):
                _add_generators(generators)
        elif panels:
            _add_images(panels, examples, max_megapixels)
        else:
            _add_generators(generators)
        gr.HTML(
            f"<p class='about'>atconv {__version__}. Uploads stay on the machine that shows this page, an "
            "hour at most.</p>"
        )
    return page


def _add_images(panels: Sequence[ImagePanel], examples: Sequence[Image.Image], max_megapixels: float) -> None:
    tasks = {panel.predictor.task for panel in panels}
    with gr.Row(elem_classes="images"):
        with gr.Column(elem_classes="given"):
            image = gr.Image(
                label="Image", type="filepath", image_mode=None, format="png", height=320,
                placeholder="Drop an image here, paste one, or click to choose a file", elem_classes="upload",
            )  # fmt: skip
            note = gr.HTML(_note(_HINT))
        with gr.Column(elem_classes="answers"), gr.Row():
            for panel in panels:
                panel.build()
        with gr.Column(elem_classes="more"):
            explain = gr.Checkbox(
                label="Explain",
                info="what supports the class, and the kernels that were made for the image",
                visible="classification" in tasks,
            )
            with gr.Accordion("Options", open=False, visible=bool(tasks & {"classification", "detection"})):
                limit = max(len(panel.predictor.classes) for panel in panels)
                top = gr.Slider(
                    1, min(limit, 20), min(5, limit), step=1, label="Classes shown",
                    visible="classification" in tasks,
                )  # fmt: skip
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Lowest score of an object", visible="detection" in tasks
                )
            if examples:
                gr.Examples(
                    [[example] for example in examples], image, label="Examples", examples_per_page=24
                )
    outputs = [component for panel in panels for component in panel.outputs]
    gr.on(
        [image.change, top.release, threshold.release, explain.change],
        partial(_predict, panels, examples[:_COMPARED], max_megapixels),
        [image, top, threshold, explain],
        [note, *outputs],
        api_name="predict",
        preprocess=False,  # `read_upload` does it
        show_progress="minimal",
        concurrency_id="model",
    )


def _predict(
    panels: Sequence[ImagePanel],
    examples: Sequence[Image.Image],
    max_megapixels: float,
    upload: Any,
    top: Any,
    threshold: Any,
    explain: Any,
) -> list[Any]:
    """The note below the image, and the outputs of all panels."""
    empty = [value for panel in panels for value in panel.empty()]
    if upload is None:
        return [_note(_HINT), *empty]
    try:
        image, about = read_upload(upload, max_megapixels)
        options = ImageOptions(int(top), float(threshold), bool(explain), examples)
    except (ValueError, TypeError) as error:
        return [_note(str(error), error=True), *empty]
    return _run(panels, lambda panel: panel.results(image, options), about)


def _add_generators(panels: Sequence[GenerationPanel]) -> None:
    classes = list(dict.fromkeys(name for panel in panels for name in panel.predictor.classes))
    each = [_EACH] if len(classes) <= _MAX_SAMPLES else []
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            label = gr.Dropdown(
                [*each, *classes], value=[*each, *classes, None][0], label="Class", visible=bool(classes)
            )
            count = gr.Slider(
                1, _MAX_SAMPLES, 8, step=1, label="Images", info="of the class" if classes else None
            )
            steps = gr.Slider(
                1, _MAX_STEPS, 25, step=1, label="Steps", info="more take longer, and follow the model closer"
            )
            guidance = gr.Slider(
                1, _MAX_GUIDANCE, 2 if classes else 1, step=0.1, label="Guidance", visible=bool(classes),
                info="1 is none; more makes images of a class more alike",
            )  # fmt: skip
            seed = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1,
                info="the same seed, the same images",
            )  # fmt: skip
            button = gr.Button("Generate", variant="primary")
            note = gr.HTML(_note("Choose a class and press Generate." if classes else "Press Generate."))
        with gr.Column(scale=2, min_width=320), gr.Row():
            for panel in panels:
                panel.build()
    button.click(
        partial(_generate, panels),
        [label, count, steps, guidance, seed],
        [note, *(component for panel in panels for component in panel.outputs)],
        api_name="generate",
        show_progress="minimal",
        concurrency_id="model",
    )


def _generate(
    panels: Sequence[GenerationPanel],
    label: str | None,
    count: int,
    steps: int,
    guidance: float,
    seed: int | None,
) -> list[Any]:
    """The note below the button, and the outputs of all panels."""
    chosen = None if label == _EACH else label
    options = SampleOptions(chosen, int(count), int(steps), float(guidance), int(seed or 0))
    return _run(panels, lambda panel: panel.results(options), "")


def _run(panels: Sequence[Any], results: Callable[[Any], list[Any]], about: str) -> list[Any]:
    """A note, and the outputs of all panels. What fails for one run does not hide the others."""
    values, times, errors = [], [about] if about else [], []
    for panel in panels:
        name, started = f"{panel.name}: " if len(panels) > 1 else "", time.perf_counter()
        try:
            values += results(panel)
            times.append(f"{name}{time.perf_counter() - started:.2f} s")
        except (ValueError, TypeError, RuntimeError) as error:
            values += panel.empty()
            errors.append(f"{name}{error}")
    return [_note("; ".join(errors), error=True) if errors else _note(", ".join(times)), *values]


def _note(text: str, error: bool = False) -> str:
    """HTML of one line."""
    kind = "note error" if error else "note"
    return f"<div class='{kind}' role='status'>{escape(' '.join(text.split()))}</div>"
