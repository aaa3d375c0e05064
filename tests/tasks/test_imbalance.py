"""Samplers and class weights in training: every task takes them, and a killed run continues exactly."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atconv.engine.predictor import Metrics
from atconv.engine.trainer import Callback
from atconv.tasks import resume, train
from atconv.tasks.classification.metrics import compute_metrics
from atconv.tasks.classification.multi_label_metrics import compute_multi_label_metrics
from atconv.tasks.detection import DetectionConfig
from atconv.tasks.detection.metrics import DetectionMetrics
from atconv.tasks.detection.task import DetectionTask
from atconv.tasks.generation import GenerationConfig
from atconv.tasks.segmentation import SegmentationConfig
from atconv.tasks.segmentation.metrics import SegmentationMetrics
from atconv.tasks.segmentation.task import SegmentationTask
from support.tiny import image_folder, reset_accelerate, tiny_config, train_tiny
from support.tiny_dense import DETECT, SEGMENT, annotated_folder, detect, segment, shared_data
from support.tiny_sit import TINY_RUN


class FailAt(Callback):
    def on_step_end(self, trainer: Any, metrics: dict[str, float]) -> None:
        if trainer.step == 7:
            raise KeyError(trainer.step)


def generate(run: Path, **changes: Any) -> Path:
    reset_accelerate()
    return train(GenerationConfig(**(TINY_RUN | changes)), run)


def test_a_sampled_run_continues_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sampler": "balanced", "checkpoint_steps": 4}
    plain = train_tiny(tmp_path / "plain", **options)
    with pytest.raises(KeyError):
        train(tiny_config(**options), tmp_path / "run", callbacks=[FailAt()])
    resume(tmp_path / "run")
    for name in ("model.safetensors", "checkpoints/step-10/state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (plain / name).read_bytes(), name


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (detect, "2 classes, 12 boxes each"),
        (segment, "3 classes, pixels to train on: "),
        (generate, "10 classes, images to train on: "),
        (train_tiny, "10 classes, images to train on: "),
    ],
    ids=["detection", "segmentation", "generation", "classification"],
)
def test_every_task_tells_its_classes_and_takes_a_sampler(
    make: Callable[..., Path], reported: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "atconv"):
        run = make(tmp_path / "run", epochs=1, sampler="repeat_factor", repeat_threshold=0.9)
    assert any(line.startswith(reported) for line in lines(caplog)), lines(caplog)
    assert list((run / "checkpoints").iterdir())


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_segmentation_weighs_classes_in_its_cross_entropy(kind: str, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from atconv.engine.run import Run

    reset_accelerate()
    accelerator = Accelerator(cpu=True)
    config = SegmentationConfig(data=str(shared_data()), **SEGMENT, class_weights=kind)  # type: ignore[arg-type]
    task = SegmentationTask(config, Run.create(tmp_path / "run"), accelerator)
    weights, counts = task.class_weights, task.occurrences
    assert weights is not None
    assert counts is not None
    totals = torch.tensor(counts.totals)
    assert float((weights * totals).sum() / totals.sum()) == pytest.approx(1, rel=1e-5)
    masks = torch.randint(0, 3, (2, 32, 64))
    logits = torch.randn(2, 3, 32, 64)
    loss = task.loss(lambda x: logits, (None, masks), 0)[1]["entropy"]  # type: ignore[arg-type]
    by_pixel = torch.nn.functional.cross_entropy(logits, masks, reduction="none") * weights[masks]
    assert float(loss) == pytest.approx(float(by_pixel.mean()), rel=1e-5)
    reset_accelerate()


@pytest.mark.parametrize("architecture", ["faster_rcnn", "retinanet"])
def test_detection_weighs_classes_in_its_classification_loss(architecture: str, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from atconv.engine.run import Run

    data = annotated_folder(tmp_path / "data", train=6)
    content = json.loads((data / "train.json").read_text())
    bright = [each for each in content["annotations"] if each["category_id"] == 3]
    content["annotations"] = [each for each in content["annotations"] if each not in bright[2:]]
    (data / "train.json").write_text(json.dumps(content))
    options: dict[str, Any] = {**DETECT, "architecture": architecture, "detector_args": {}}
    reset_accelerate()
    accelerator = Accelerator(cpu=True)
    config = DetectionConfig(data=str(data), **options, class_weights="inverse")
    task = DetectionTask(config, Run.create(tmp_path / "run"), accelerator)
    found = [each for name, each in task.model.named_buffers() if name.endswith("class_weights")]
    weights = {"background": 1.0, "dark": (6 + 2) / (2 * 6), "bright": (6 + 2) / (2 * 2)}
    assert [each.tolist() for each in found] == [
        pytest.approx([weights[name] for name in ("background", *task.classes)])
    ]
    assert not any("class_weights" in name for name in task.model.state_dict())
    reset_accelerate()


def test_a_sampled_classifier_is_picked_by_balanced_accuracy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sampler and repeats do not go together"):
        tiny_config(sampler="balanced", repeats=2)
    config = tiny_config(sampler="balanced")
    assert config.evens_out
    assert not tiny_config().evens_out


def segmentation_metrics() -> Metrics:
    rows: list[dict[str, Any]] = [{"class": "ant", "iou": 50.0, "accuracy": 60.0, "pixels": 9}]
    rows.append({"class": "bee", "iou": None, "accuracy": None, "pixels": 0})
    return SegmentationMetrics(
        **COMMON, per_class=rows, miou=50.0, miou_interval=(1.0, 2.0), pixel_accuracy=60.0,
        pixel_accuracy_interval=(1.0, 2.0), flip_tta=False,
    )  # fmt: skip


COMMON: dict[str, Any] = {"split": "val", "images": 2, "images_per_second": 1.0}
ANTS = np.array([[0.9, 0.2], [0.8, 0.3]], dtype=np.float32)
"""two images of class ant, and none of class bee"""


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: compute_metrics(ANTS, np.array([0, 0]), ["ant", "bee"], 1.0), ["balanced", "macro F1"]),
        (
            lambda: compute_multi_label_metrics(ANTS, ANTS > 0.5, ["ant", "bee"], [0.5, 0.5], 1.0),
            ["mAP", "macro F1"],
        ),
        (segmentation_metrics, ["mean IoU"]),
        (
            lambda: DetectionMetrics(
                **COMMON,
                coco={"box_map": 30.0},
                per_class=[{"class": "ant", "box_map": 30.0}, {"class": "bee", "box_map": None}],
            ),
            ["box mAP"],
        ),
    ],
    ids=["classification", "several labels", "segmentation", "detection"],
)
def test_a_mean_over_classes_says_which_it_leaves_out(make: Callable[[], Metrics], names: list[str]) -> None:
    rows = make().tables("")[0].rows
    for name in names:
        [value] = [row[1] for row in rows if row[0].startswith(name)]
        assert value.endswith(" over 1 of 2 classes, without bee")


def test_a_class_that_is_predicted_counts_in_macro_f1() -> None:
    metrics = compute_metrics(ANTS[:, ::-1], np.array([0, 0]), ["ant", "bee"], 1.0)
    rows = dict(metrics.tables("")[0].rows)
    assert (rows["macro F1"], metrics.macro_f1) == ("0.00 %", 0.0)
    assert "without bee" in rows["balanced accuracy"]


def test_the_best_epoch_says_of_which_classes_it_knows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_folder(tmp_path / "data" / "train", {"ant": 8, "bee": 4})
    image_folder(tmp_path / "data" / "val", {"ant": 4}, 1)
    options: dict[str, Any] = {"data": str(tmp_path / "data"), "in_chans": 3, "epochs": 1}
    scene = annotated_folder(tmp_path / "scene", train=4, val=1)
    for path in (scene / "masks" / "val").iterdir():
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    with caplog.at_level(logging.INFO, "atconv"):
        train_tiny(tmp_path / "balanced", **options, sampler="balanced")
        segment(tmp_path / "segment", scene, epochs=1)
    rows = [row for message in caplog.messages for row in message.splitlines()]
    best = [row for row in rows if row.startswith("validation ")]
    assert len(best) == 2
    assert best[0].endswith(" %, no bee in the val split")
    assert best[1].endswith(" %, no bright in the val split")
