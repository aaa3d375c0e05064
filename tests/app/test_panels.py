"""What panels say of a result without a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from atconv.app.panels import ClassificationPanel, DrawnPanel, ImageOptions, make_panel
from atconv.tasks import TASKS
from atconv.tasks.classification import explain as drawn

IMAGE = Image.new("L", (8, 8))


class Fixed(SimpleNamespace):
    """A predictor that sees a cat in every image."""

    def __call__(self, image: Any, top: int) -> list[Any]:
        return [SimpleNamespace(classes=["cat"], probabilities=[0.8])]


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_not_shown_is_said_and_thresholds_are(multi_label: bool) -> None:
    predictor = Fixed(multi_label=multi_label, classes=["cat", "dog"], thresholds=[0.25, 0.5])
    panel = ClassificationPanel("run", predictor)
    classes, *_, note = panel.results(IMAGE, ImageOptions())
    assert classes == {"cat": 0.8}
    assert note["visible"] == multi_label == ("cat 25 %, dog 50 %" in note["value"])
    with (
        mock.patch.object(drawn, "draw_support", return_value=None),
        mock.patch.object(drawn, "draw_kernels", return_value=None),
    ):
        _, support, kernels, note = panel.results(IMAGE, ImageOptions(explain=True))
    assert not support["visible"]
    assert not kernels["visible"]
    assert note["visible"]
    assert ("it may give an image several" in note["value"]) == multi_label
    assert "no attentive convolution" in note["value"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_names_its_panel(task: str) -> None:
    panel = make_panel("mine", SimpleNamespace(task=task))
    assert panel.title
    assert type(panel) is not DrawnPanel  # which is for tasks that name none
