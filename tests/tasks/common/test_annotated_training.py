"""`atconv detect train` and `atconv segment train`: they learn, resume exactly, start from classifiers."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import atconv
from atconv.data.boxes.split import decode_mask
from atconv.engine.run import Run
from atconv.tasks import get_task, train
from atconv.tasks.segmentation.data import SegmentationTransform
from support.helpers import assert_close
from support.tiny import KillAt, read_rows, train_tiny
from support.tiny import atconv as command
from support.tiny_dense import (
    DETECT,
    SEGMENT,
    annotated_folder,
    detect,
    detection_run,
    options,
    segment,
    segmentation_run,
    shared_data,
)

TASKS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "detect": (detect, DETECT),
    "segment": (segment, SEGMENT),
}
CHANGES = {"checkpoint_steps": 2, "color_jitter": 0.2, "drop_path_rate": 0.1, "workers": 1}
STEP = "torch.optim.AdamW.step"


def metrics(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table, but for the speed of the machine."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / name)]


@pytest.mark.parametrize("run", [train_tiny, detect, segment])
def test_processes_that_load_images_stay_from_epoch_to_epoch(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = _MultiProcessingDataLoaderIter.__init__

    def count(self: Any, loader: DataLoader[Any]) -> None:
        started.append(loader.num_workers)
        start(self, loader)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", count)
    run(tmp_path / "run", epochs=3, workers=1)
    assert started == [1, 1, 1]  # training, validation, evaluation at the end


@pytest.mark.parametrize("task", TASKS)
def test_training_lowers_the_loss(task: str, tmp_path: Path) -> None:
    run = TASKS[task][0](tmp_path / "run", epochs=8, lr=5e-3, clip_grad=5.0)
    losses = [float(row["train_loss"]) for row in read_rows(run / "metrics.csv")]
    assert losses[-1] < 0.85 * losses[0]


@functools.cache
def uninterrupted(task: str) -> Path:
    """A run from first to last in a process of its own, which tests read and never write to."""
    run = Path(tempfile.mkdtemp()) / "run"
    atexit.register(shutil.rmtree, run.parent, ignore_errors=True)
    ended = command(task, "train", shared_data(), *options(TASKS[task][1], **CHANGES), f"--out={run}")
    assert ended.code == 0, ended.err
    return run


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kill_at", [KillAt(STEP, nth=5), KillAt("os.replace", "metrics.csv")])
def test_a_killed_run_resumes_to_the_same_bits(task: str, kill_at: KillAt, tmp_path: Path) -> None:
    full, run = uninterrupted(task), tmp_path / "run"
    given = options(TASKS[task][1], **CHANGES)
    ended = command(task, "train", shared_data(), *given, f"--out={run}", kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, ended.err
    ended = command(task, "train", "--resume", run)
    assert ended.code == 0, ended.err
    assert "resuming at epoch" in ended.out
    for name in ("model.safetensors", "checkpoints/step-6/state.safetensors"):
        assert (run / name).read_bytes() == (full / name).read_bytes(), name
    for name in ("metrics.csv", "inhibition.csv", "per_class.csv"):
        assert metrics(run, name) == metrics(full, name), name


@pytest.mark.plots
@pytest.mark.parametrize("start", [detect, segment])
def test_a_run_holds_what_it_says(start: Callable[[Path], Path], tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    for name in ("config.yaml", "split.json", "config.json", "model.safetensors", "per_class.csv"):
        assert (run / name).is_file(), name
    for name in ("curves.png", "predictions.png"):
        assert min(Image.open(run / name).size) > 300
    content = json.loads((run / "metrics.json").read_text())
    assert content["split"] == "val"
    assert content["images"] == 4
    assert json.loads((run / "split.json").read_text())["val"] == ["0.png", "1.png", "2.png", "3.png"]
    assert len(read_rows(run / "inhibition.csv")) == 2 * 4


def test_masks_are_learned_and_measured_too(tmp_path: Path) -> None:
    run = detect(tmp_path / "run", architecture="mask_rcnn", epochs=1)
    assert set(read_rows(run / "metrics.csv")[0]) >= {"val_map", "val_map_50", "val_mask_map", "train_mask"}
    assert {"box_map", "mask_map"} <= set(json.loads((run / "metrics.json").read_text())["coco"])
    predictor = atconv.load(run)
    metrics = predictor.evaluate()
    scores = (metrics.box_map, metrics.box_map_50, metrics.mask_map, metrics.mask_map_50)
    assert scores == tuple(
        metrics.coco[f"{kind}_{name}"] for kind in ("box", "mask") for name in ("map", "map_50")
    )
    image = shared_data() / "images" / "val" / "0.png"
    output = predictor.model([predictor.transform(Image.open(image))])[0]
    assert output["masks"].shape[1:] == (1, 40, 56)
    [result] = predictor.save_predictions(predictor(image, threshold=0.01), tmp_path / "drawn")
    assert Path(result.plot).parent == tmp_path / "drawn"
    assert result.masks is not None
    assert len(result.masks) == len(result.boxes) > 0
    for mask, expected in zip(result.masks, output["masks"][output["scores"] >= 0.01], strict=True):
        assert (decode_mask(mask, 40, 56) == (expected[0] > 0.5).numpy()).all()


def test_retinanet_trains_in_color(tmp_path: Path) -> None:
    extra = {"architecture": "retinanet", "detector_args": {"detections_per_img": 5}, "in_chans": 3}
    assert len(read_rows(detect(tmp_path / "run", epochs=1, **extra) / "metrics.csv")) == 1


@pytest.mark.parametrize("architecture", ["fpn", "upernet"])
def test_other_segmenters_train(architecture: str, tmp_path: Path) -> None:
    narrow = {"decoder_channels": 16} if architecture == "upernet" else {"decoder_pyramid_channels": 16}
    run = segment(tmp_path / "run", epochs=1, architecture=architecture, segmenter_args=narrow)
    assert len(read_rows(run / "metrics.csv")) == 1


def test_load_opens_both() -> None:
    predictor = atconv.load(detection_run())
    assert (predictor.task, predictor.classes) == ("detection", ["bright", "dark"])
    assert predictor.transform(Image.new("RGB", (50, 40))).shape == (1, 40, 50)
    state = load_file(detection_run() / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in predictor.model.state_dict().items())
    predictor = atconv.load(segmentation_run())
    assert (predictor.task, predictor.classes) == ("segmentation", ["ground", "dark", "bright"])
    x = predictor.transform(Image.new("RGB", (50, 40)))
    assert x.shape == (1, 64, 64)
    assert predictor.model(x[None]).shape == (1, 3, 64, 64)


def test_smp_opens_a_segmentation_run() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs, ours = smp.from_pretrained(str(segmentation_run())).eval(), atconv.load(segmentation_run()).model
    x = torch.randn(1, 1, 64, 96)
    assert_close(theirs(x), ours(x), 1e-5)  # ours is channels-last


def test_runs_know_their_task(tmp_path: Path) -> None:
    for copy, run in (("boxes", detection_run()), ("masks", segmentation_run())):
        shutil.copytree(run, tmp_path / copy)
        (tmp_path / copy / "config.yaml").unlink()  # the model says it too
        assert atconv.load(tmp_path / copy).task == atconv.load(run).task
    classifier = Run.open(train_tiny(tmp_path / "run"))
    for task, name in (("detection", "detect"), ("segmentation", "segment")):
        with pytest.raises(ValueError, match=f"is not a run of atconv {name} train"):
            get_task(task).predictor_class().open(classifier)


@pytest.mark.parametrize("task", TASKS)
def test_a_backbone_starts_from_a_classifier(task: str, tmp_path: Path) -> None:
    source = train_tiny(tmp_path / "classifier", model_args={**DETECT["model_args"]}, image_size=32)
    values = TASKS[task][1]
    fixed = {"lr": 1e-30, "warmup_lr": 0.0, "min_lr": 0.0, "epochs": 1, "ema_decay": 0.0, "weight_decay": 0.0}
    own = {name: value for name, value in values.items() if name not in ("model_args", "in_chans")}
    given = options(own, **fixed, checkpoint=str(source), freeze_bn=True)
    ended = command(task, "train", shared_data(), *given, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert f"starts from {source}" in ended.out
    sizes = "min_size (40, 48), max_size 72" if task == "detect" else "short_side 40, crop (32, 64)"
    for line in (
        f"classes: 10 in {source}, {2 if task == 'detect' else 3} here; only the backbone is taken",
        f"image size: image_size 32 in {source}, {sizes} here; the weights take any size",
        f"in_chans: 1 in {source}, 3 here; 1 is taken with the weights",
    ):
        assert line in ended.out.splitlines()
    model: Any = atconv.load(tmp_path / "run").model
    body: Any = model.backbone.body if task == "detect" else model.encoder.model
    classifier = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
    x = torch.randn(1, 1, 64, 64)
    for ours, theirs in zip(
        body.eval()(x), classifier.forward_intermediates(x, intermediates_only=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    ended = command(task, "train", shared_data(), *given, "--in-chans=3", f"--out={tmp_path / 'other'}")
    assert ended.code == 2
    assert "--in-chans 3 contradicts --checkpoint" in ended.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("task", ["detect", pytest.param("segment", marks=pytest.mark.slow)])
def test_training_starts_from_another_run_of_other_classes_and_sizes(
    task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = annotated_folder(tmp_path / "data", train=4, val=2)
    for file in (data / "train.json", data / "val.json"):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 9, "name": "third"})
        file.write_text(json.dumps(content))
    with (data / "classes.txt").open("a") as classes:
        classes.write("third\n")
    source = detection_run() if task == "detect" else segmentation_run()
    fixed = {"lr": 1e-30, "warmup_lr": 0.0, "min_lr": 0.0, "epochs": 1, "ema_decay": 0.0, "weight_decay": 0.0}
    size: dict[str, Any] = {"max_size": 90} if task == "detect" else {"short_side": 48}
    given = {**fixed, **size, "freeze_bn": True, "in_chans": 3, "model_args": {}, "checkpoint": str(source)}
    with caplog.at_level("INFO", "atconv"):
        run = TASKS[task][0](tmp_path / "run", data, **given)
    before, after = (2, 3) if task == "detect" else (3, 4)
    sizes = "min_size (40, 48), max_size {}" if task == "detect" else "short_side {}, crop (32, 64)"
    smaller, larger = (72, 90) if task == "detect" else (40, 48)
    for line in (
        f"classes: {before} in {source}, {after} here; what depends on their number is newly initialized",
        f"image size: {sizes.format(smaller)} in {source}, {sizes.format(larger)} here; "
        "the weights take any size",
        f"in_chans: 1 in {source}, 3 here; 1 is taken with the weights",
    ):
        assert line in caplog.messages
    ours, theirs = load_file(run / "model.safetensors"), load_file(source / "model.safetensors")
    new = {name for name, tensor in ours.items() if tensor.shape != theirs[name].shape}
    heads = ("roi_heads.box_predictor.", "segmentation_head.")
    assert new
    assert all(name.startswith(heads) for name in new)
    for name in ours.keys() - new:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)
    other = {"architecture": "retinanet" if task == "detect" else "fpn"}
    config = replace(atconv.load(run).config, **other)
    with pytest.raises(ValueError, match=r"--architecture .* contradicts --checkpoint"):
        train(config, chosen=other)


@pytest.mark.parametrize("task", TASKS)
def test_unreadable_images_are_left_out_up_to_a_limit(task: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shared_data(), data)
    (data / "images" / "train" / "1.png").write_bytes(b"no image")
    if task == "detect":
        (data / "images" / "val" / "2.png").unlink()
    else:
        (data / "masks" / "val" / "2.png").write_bytes(b"no image")
    run = TASKS[task][0](tmp_path / "run", data, epochs=1, max_skipped=0.2)
    assert [(row["split"], row["file"]) for row in read_rows(run / "skipped.csv")] == [
        ("train", "1.png"),
        ("val", "2.png"),
    ]
    assert json.loads((run / "split.json").read_text())["val"] == ["0.png", "1.png", "3.png"]
    assert atconv.load(run).evaluate().images == 3
    with pytest.raises(
        ValueError, match=r"2 of 16 files are unreadable, more than max_skipped \(10%\) allows"
    ):
        TASKS[task][0](tmp_path / "other", data, epochs=1, max_skipped=0.1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["skipped.csv"]


@pytest.mark.parametrize("task", TASKS)
def test_images_may_lie_outside_data_and_evaluation_leaves_out_what_is_unreadable(
    task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = annotated_folder(tmp_path / "data", train=5, val=3)
    photos = (data / "images").rename(tmp_path / "photos")
    run = TASKS[task][0](tmp_path / "run", data, epochs=1, images=str(photos), max_skipped=0.4)
    predictor = atconv.load(run)
    assert predictor.evaluate().images == predictor.evaluate(str(data), images=str(photos)).images == 3
    shutil.copytree(data, tmp_path / "other")
    (photos / "val" / "1.png").write_bytes(b"no image")
    metrics = predictor.evaluate(str(tmp_path / "other"), images=str(photos))
    assert metrics.images == 2
    left_out = [m for m in caplog.messages if m.startswith("left out 1.png: ")]
    assert left_out
    assert all("not a readable image" in m for m in left_out)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_without_splits_is_on_the_images_held_out(task: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shared_data(), data)
    for name in ("val.json", "images/val", "masks/val"):
        (data / name).rename(data / f"unused-{Path(name).stem}-{len(name)}")
    for kind in ("images", "masks"):
        for path in sorted((data / kind / "train").iterdir()):
            path.rename(data / kind / path.name)
        (data / kind / "train").rmdir()
    (data / "train.json").rename(data / "annotations.json")
    run = TASKS[task][0](tmp_path / "run", data, epochs=1, val_fraction=0.25)
    own, again = atconv.load(run).evaluate(), atconv.load(run).evaluate(str(data))
    assert (own.split, own.images) == (again.split, again.images) == ("val", 3)
    assert atconv.load(run).evaluate(split="train").split == "train"


def test_crowds_and_classes_without_boxes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    shutil.copytree(shared_data(), data)
    content = json.loads((data / "train.json").read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["category_id"] == 7)
    (data / "train.json").write_text(json.dumps(content))
    detect(tmp_path / "run", data, epochs=1)
    assert "crowds (iscrowd 1, or difficult) are left out of training: 12 of dark" in caplog.text
    assert "no box of a single object teaches dark" in caplog.text


def test_upernet_learns_from_few_images(tmp_path: Path) -> None:
    """Five images in micro-batches of two: none is left with one, of which batch norm learns nothing."""
    data = annotated_folder(tmp_path / "data", train=5, val=1)
    changes = {"architecture": "upernet", "segmenter_args": {"decoder_channels": 16}, "epochs": 1}
    run = segment(tmp_path / "run", data, batch_size=2, base_batch_size=64, **changes)
    assert len(read_rows(run / "metrics.csv")) == 1


def test_images_that_changed_stop_a_resume(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shared_data(), data)
    run = segment(tmp_path / "run", data, epochs=1)
    (run / "metrics.json").unlink()
    for folder in ("images", "masks"):
        (data / folder / "train" / "1.png").rename(data / folder / "train" / "other.png")
    ended = command("segment", "train", "--resume", run)
    assert ended.code == 2
    assert "the images or annotations are not those that" in ended.err


@pytest.mark.parametrize("size", [(40, 40), (97, 64), (33, 95), (64, 130)])
def test_logits_come_back_to_the_size_of_the_image(size: tuple[int, int]) -> None:
    transform = SegmentationTransform(1, 48, None, None)
    gradient = Image.linear_gradient("L").resize((size[1], size[0]))
    x = transform(gradient)
    assert all(length % 32 == 0 for length in x.shape[1:])
    back = transform.undo(x[None], size)[0, 0] * 127.5 + 127.5
    expected = torch.tensor(list(gradient.getdata()), dtype=torch.float32).reshape(size)
    assert (back - expected).abs().max() < 12  # a gradient survives resizing; a wrong crop would shift it


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_recipes_are_complete(task: str) -> None:
    spec = get_task(task)
    assert spec.default_recipe in spec.recipe_names()
    for name in spec.recipe_names():
        options = yaml.safe_load(spec.recipe_path(name).read_text())
        spec.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
