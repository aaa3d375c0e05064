"""Sizes that an exported segmenter takes, and how it is compared with `predict`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atconv import load
from atconv.tasks.segmentation.data import resized
from atconv.tasks.segmentation.export import SegmentationExporter, _filter, _resized
from support.tiny_dense import segmentation_run


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60))
def test_the_filter_is_antialiased_interpolation(length: int, size: int) -> None:
    x = torch.rand(1, 1, 1, length)
    expected = F.interpolate(x, (1, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(x @ _filter(length, size).T, expected, rtol=0, atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600))
def test_open_sizes_are_the_sizes_of_the_transform(height: int, width: int, short_side: int) -> None:
    assert _resized(height, width, short_side) == resized((height, width), short_side)


def test_a_segmenters_usual_size_is_the_datas_or_the_crops() -> None:
    exporter = SegmentationExporter(load(segmentation_run()))
    assert exporter.shape == (1, 40, 80)  # a crop of 32 × 64
    exporter.images(None, None, 4)
    assert exporter.shape == (1, 40, 56)
    exporter.predictor.config = None  # a folder with the model alone
    assert SegmentationExporter(exporter.predictor).shape == (1, 40, 40)


def test_a_file_that_segments_something_else_is_rejected() -> None:
    exporter = SegmentationExporter(load(segmentation_run()))
    images = exporter.images(None, None, 2)
    with torch.inference_mode():
        assert max(exporter.agreement(exporter.graph, images).values()) <= 2e-3
        with pytest.raises(ValueError, match="pixels have another class"):
            exporter.agreement(lambda x: 2 - exporter.graph(x), images)
