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
from sklearn.datasets._base import load_digits

from atconv.data.sources.lmdb_file import LmdbReader
from studies.datasets import cued_garments
from studies.datasets.cued_garments import SIZE, Parts, build_cued_garments, digit_scans, make_frame
from studies.datasets.garments import Garments


def bright_parts() -> Parts:
    """Garments whose brightness says their class, digits whose brightness says their number."""
    labels = np.arange(200) % 10
    images = np.broadcast_to((100 + 10 * labels)[:, None, None], (200, 28, 28)).astype(np.uint8)
    digits = [np.full((5, 8, 8), 220 + 10 * cue, dtype=np.uint8) for cue in range(2)]
    return Parts(Garments(images, labels, [f"class {c}" for c in range(10)]), digits)


PARTS = bright_parts()


@settings(deadline=None)
@given(seed=st.integers(0, 99), split=st.integers(0, 1), index=st.integers(0, 10**6))
def test_a_frame_shows_what_its_label_says(seed: int, split: int, index: int) -> None:
    frame = make_frame(PARTS, seed, split, index)
    assert frame.pixels.shape == (SIZE, SIZE)
    parts = [frame.pixels[t : t + s, x : x + s] for t, x, s in frame.boxes]
    brightness = [int(part[part.shape[0] // 2, part.shape[1] // 2]) for part in parts]
    assert [(value - 100) // 10 for value in brightness[:2]] == frame.classes
    assert (brightness[2] - 220) // 10 == frame.cue
    assert len(set(frame.classes)) == 2
    centers = [left + size / 2 for _, left, size in frame.boxes[:2]]
    assert frame.label == frame.classes[int(np.argsort(centers)[frame.cue])]
    assert min(np.diff(sorted(centers))) >= 4
    covered = np.zeros((SIZE, SIZE), dtype=int)
    for top, left, size in frame.boxes:
        covered[top : top + size, left : left + size] += 1
    assert covered.max() == 1
    assert sum(size**2 for _, _, size in frame.boxes) == covered.sum()  # all of them inside the frame
    again = make_frame(PARTS, seed, split, index)
    assert np.array_equal(frame.pixels, again.pixels)
    assert (frame.label, frame.cue, frame.boxes) == (again.label, again.cue, again.boxes)


def test_labels_and_cues_are_even_and_positions_are_spread() -> None:
    frames = [make_frame(PARTS, 0, 0, i) for i in range(3000)]
    labels, cues = Counter(f.label for f in frames), Counter(f.cue for f in frames)
    assert all(240 < labels[label] < 360 for label in range(10))
    assert all(1400 < cues[cue] < 1600 for cue in range(2))
    # Neither the digit's position nor its number says where the garment that counts lies up or down.
    tops = np.array([f.boxes[f.classes.index(f.label)][0] for f in frames])
    assert abs(np.corrcoef(tops, [f.cue for f in frames])[0, 1]) < 0.06
    assert {f.boxes[2][0] < SIZE / 2 for f in frames} == {True, False}


def test_other_numbers_give_other_frames() -> None:
    first = make_frame(PARTS, 0, 0, 0).pixels
    for arguments in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not np.array_equal(make_frame(PARTS, *arguments).pixels, first)


def test_the_frames_are_those_that_results_were_made_with() -> None:
    """numpy may change what its generators sample, Pillow how it scales: then studies are to be run again."""
    shades = np.arange(784, dtype=np.uint32).reshape(1, 28, 28) * np.arange(1, 201)[:, None, None]
    shaded = replace(PARTS, garments=replace(PARTS.garments, images=(shades % 251).astype(np.uint8)))
    digest = hashlib.sha256()
    for index in range(50):
        frame = make_frame(shaded, 0, index % 2, index)
        digest.update(frame.pixels.tobytes() + bytes([frame.label]))
    assert digest.hexdigest() == "6d1c8d192f5be7a18d1fa1adca7f35295ad9aca6e49f891a37d86294ec36f918"


def test_no_digit_is_in_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.load_digits", load_digits)  # other tests use a few
    train, test = digit_scans("train"), digit_scans("test")
    for cue, (train_scans, test_scans) in enumerate(zip(train, test, strict=True)):
        assert len(train_scans) > 3 * len(test_scans) > 60, cue
        assert not {scan.tobytes() for scan in train_scans} & {scan.tobytes() for scan in test_scans}


def test_files_hold_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cued_garments, "load_parts", lambda root, split: PARTS)
    out = build_cued_garments(tmp_path, tmp_path / "out", train=12, test=5, seed=3)
    train, test = LmdbReader(out / "train.lmdb"), LmdbReader(out / "test.lmdb")
    assert (len(train), len(test)) == (12, 5)
    assert train.classes == PARTS.garments.classes
    assert [train[i][1] for i in range(12)] == [make_frame(PARTS, 3, 0, i).label for i in range(12)]
    assert [test[i][1] for i in range(5)] == [make_frame(PARTS, 3, 1, i).label for i in range(5)]
    (out / "train.lmdb").unlink()  # as a build that was stopped may leave it
    with pytest.raises(
        ValueError, match=r"out/test\.lmdb exist already: remove them, or name another folder"
    ):
        build_cued_garments(tmp_path, out, train=12, test=5)
    assert not (out / "train.lmdb").exists()


def test_missing_images_and_no_frames_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unpack it with python -m studies\.datasets"):
        build_cued_garments(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="must be at least 1"):
        build_cued_garments(tmp_path, tmp_path / "out", train=0)
