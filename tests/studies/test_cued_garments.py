"""Cued garments: a frame follows from its number and shows what its label says."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atconv.data import cued_garments
from atconv.data.cued_garments import (
    FRAME,
    Material,
    build_cued_garments,
    digit_scans,
    draw_frame,
)
from atconv.data.lmdb_format import LmdbReader


def material() -> Material:
    """Garments whose brightness says their class, digits whose brightness says their number."""
    classes = np.arange(200) % 10
    garments = np.broadcast_to((100 + 10 * classes)[:, None, None], (200, 28, 28)).astype(np.uint8)
    digits = [np.full((5, 8, 8), 220 + 10 * cue, dtype=np.uint8) for cue in range(2)]
    return Material(garments, classes, [f"class {c}" for c in range(10)], digits)


MATERIAL = material()


@settings(deadline=None)
@given(seed=st.integers(0, 99), side=st.integers(0, 1), index=st.integers(0, 10**6))
def test_a_frame_shows_what_its_label_says(seed: int, side: int, index: int) -> None:
    frame = draw_frame(MATERIAL, seed, side, index)
    assert frame.pixels.shape == (FRAME, FRAME)
    parts = [frame.pixels[t : t + s, x : x + s] for t, x, s in frame.boxes]
    brightness = [int(part[part.shape[0] // 2, part.shape[1] // 2]) for part in parts]
    assert [(value - 100) // 10 for value in brightness[:2]] == frame.classes
    assert (brightness[2] - 220) // 10 == frame.cue
    assert len(set(frame.classes)) == 2
    middles = [left + length / 2 for _, left, length in frame.boxes[:2]]
    assert frame.label == frame.classes[int(np.argsort(middles)[frame.cue])]
    assert min(np.diff(sorted(middles))) >= 4
    covered = np.zeros((FRAME, FRAME), dtype=int)
    for top, left, length in frame.boxes:
        covered[top : top + length, left : left + length] += 1
    assert covered.max() == 1
    assert sum(length**2 for _, _, length in frame.boxes) == covered.sum()  # all of them inside the frame
    again = draw_frame(MATERIAL, seed, side, index)
    assert np.array_equal(frame.pixels, again.pixels)
    assert (frame.label, frame.cue, frame.boxes) == (again.label, again.cue, again.boxes)


def test_labels_and_cues_are_even_and_places_are_spread() -> None:
    frames = [draw_frame(MATERIAL, 0, 0, i) for i in range(3000)]
    labels, cues = Counter(f.label for f in frames), Counter(f.cue for f in frames)
    assert all(240 < labels[label] < 360 for label in range(10))
    assert all(1400 < cues[cue] < 1600 for cue in range(2))
    # Neither the digit's place nor its number says where the garment that counts lies up or down.
    tops = np.array([f.boxes[f.classes.index(f.label)][0] for f in frames])
    assert abs(np.corrcoef(tops, [f.cue for f in frames])[0, 1]) < 0.06
    assert {f.boxes[2][0] < FRAME / 2 for f in frames} == {True, False}


def test_other_numbers_give_other_frames() -> None:
    first = draw_frame(MATERIAL, 0, 0, 0).pixels
    for arguments in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not np.array_equal(draw_frame(MATERIAL, *arguments).pixels, first)


def test_the_frames_are_those_that_results_were_made_with() -> None:
    """numpy may change what its generators draw, Pillow how it scales: then studies are to be run again."""
    shades = np.arange(784, dtype=np.uint32).reshape(1, 28, 28) * np.arange(1, 201)[:, None, None]
    shaded = replace(MATERIAL, garments=(shades % 251).astype(np.uint8))
    digest = hashlib.sha256()
    for index in range(50):
        frame = draw_frame(shaded, 0, index % 2, index)
        digest.update(frame.pixels.tobytes() + bytes([frame.label]))
    assert digest.hexdigest() == "6d1c8d192f5be7a18d1fa1adca7f35295ad9aca6e49f891a37d86294ec36f918"


def test_no_digit_is_on_both_sides() -> None:
    train, test = digit_scans("train"), digit_scans("test")
    for cue, (ours, theirs) in enumerate(zip(train, test, strict=True)):
        assert len(ours) > 3 * len(theirs) > 60, cue
        assert not {one.tobytes() for one in ours} & {one.tobytes() for one in theirs}


def test_files_hold_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cued_garments, "load_material", lambda root, side: MATERIAL)
    out = build_cued_garments(tmp_path, tmp_path / "out", train=12, test=5, seed=3)
    train, test = LmdbReader(out / "train.lmdb"), LmdbReader(out / "test.lmdb")
    assert (len(train), len(test)) == (12, 5)
    assert train.classes == MATERIAL.names
    assert [train[i][1] for i in range(12)] == [draw_frame(MATERIAL, 3, 0, i).label for i in range(12)]
    assert [test[i][1] for i in range(5)] == [draw_frame(MATERIAL, 3, 1, i).label for i in range(5)]
    (out / "train.lmdb").unlink()  # as a build that was stopped may leave it
    with pytest.raises(
        ValueError, match=r"out/test\.lmdb exist already: remove them, or name another folder"
    ):
        build_cued_garments(tmp_path, out, train=12, test=5)
    assert not (out / "train.lmdb").exists()


def test_missing_pictures_and_no_frames_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lay it out with atconv data fashion-mnist"):
        build_cued_garments(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="must be at least 1"):
        build_cued_garments(tmp_path, tmp_path / "out", train=0)
