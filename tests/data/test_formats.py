"""Which format DATA is taken for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atconv.data import formats
from atconv.data.formats import FORMATS, AnnotatedFormat, annotated_splits
from support.tiny_dense import annotated_folder

[COCO] = [known for known in FORMATS if isinstance(known, AnnotatedFormat) and "COCO" in known.name]


@pytest.mark.parametrize("claims", [False, True])
def test_a_format_that_recognizes_data_opens_it(
    claims: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that would find splits in anything."""
    data = annotated_folder(tmp_path, train=1, val=1)
    new = replace(COCO, name="new", recognizes=lambda path: claims, splits=lambda data, images: ["test"])
    monkeypatch.setattr(formats, "FORMATS", (new, *FORMATS))
    assert list(annotated_splits("boxes", data)) == (["test"] if claims else ["train", "val"])
    assert list(annotated_splits("boxes", tmp_path / "images")) == ["test"]  # nothing else knows it
