"""Options that would train on nothing are rejected before anything is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from atconv.data.sources.pack import pack_folder
from atconv.engine.run import Run
from atconv.tasks import train
from atconv.tasks.classification.augmentation import train_transform
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.objective import open_teacher
from atconv.tasks.detection.config import DetectionConfig
from atconv.tasks.segmentation.config import SegmentationConfig


@pytest.mark.parametrize("config", [ClassificationConfig, DetectionConfig, SegmentationConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\)"),
        ({"drop_rate": 1.0}, r"drop_rate must lie in \[0, 1\)"),
        ({"lr": 1e-4, "min_lr": 1e-3}, r"min_lr must be at most lr \(0.0001\), got 0.001"),
    ],
    ids=["drop path", "dropout", "learning rates"],
)
def test_rates(config: type[Any], options: dict[str, Any], message: str) -> None:
    if not {*options} <= {field.name for field in dataclasses.fields(config)}:
        pytest.skip("it has no such option")
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("name", ["rand-mX", "rand-m9-inc", "augmix-m"])
def test_automatic_augmentation_without_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"does not take auto_augment '{name}'"):
        train_transform(ClassificationConfig(auto_augment=name))
    train_transform(ClassificationConfig(auto_augment="rand-m9-mstd0.5-inc1"))


@pytest.mark.parametrize("value", [-3, 0])
def test_a_detector_without_detections(value: int) -> None:
    with pytest.raises(ValueError, match="detector_args: box_detections_per_img must be at least 1"):
        DetectionConfig(detector_args={"box_detections_per_img": value})
    DetectionConfig(detector_args={"box_score_thresh": 0, "box_detections_per_img": 5})


def test_a_teacher_in_no_folder() -> None:
    with pytest.raises(ValueError, match="teacher 'nope/nothing' cannot be loaded: there is no such folder"):
        open_teacher(ClassificationConfig(distill="soft", teacher="nope/nothing"))


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=r"link cannot be made \(it is a link to .*gone, which does not exist"
    ):
        Run.create(link)
    assert link.is_symlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file/deep/run cannot be made \(.*/file is a file\): name another"):
        Run.create(tmp_path / "file" / "deep" / "run")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop cannot be made"):
        train(ClassificationConfig(data="digits"), tmp_path / "loop")
    with pytest.raises(FileNotFoundError, match="file is a file: give a folder"):
        pack_folder(tmp_path / "file", tmp_path / "out.lmdb")
    if Path("/proc/self").exists():
        with pytest.raises(ValueError, match=r"/proc/x cannot be made \(.*\): name another with --out"):
            Run.create("/proc/x")
