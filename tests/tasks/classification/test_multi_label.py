from __future__ import annotations

import ast
import functools
import json
import re
import runpy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

import atconv
from atconv.io import read_rows
from atconv.tasks import resume
from atconv.tasks.classification.export import ClassificationExporter
from atconv.tasks.classification.multi_label import MultiLabelObjective
from atconv.tasks.classification.multi_label_metrics import (
    choose_thresholds,
    compute_multi_label_metrics,
    micro_f1,
)
from atconv.tasks.classification.multi_label_predictor import MultiLabelPredictor
from atconv.tasks.publish import publish
from support.tiny import atconv as run_atconv
from support.tiny import image_folder, reset_accelerate, tiny_config, train_tiny

RNG = np.random.default_rng(0)
CLASSES = ["cat", "dog", "sun"]
LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
LOGITS = torch.tensor(RNG.normal(size=(4, 3)) * 2).float()


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return LOGITS[: len(x)]


def objective(**options: Any) -> MultiLabelObjective:
    labels = LABELS.numpy().astype(np.uint8)
    return MultiLabelObjective(tiny_config(**options), CLASSES, labels)


def binary_loss(targets: np.ndarray, positive: np.ndarray | float = 1.0) -> float:
    """Binary cross-entropy, one label at a time."""
    shares = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    return float(-(positive * targets * np.log(shares) + (1 - targets) * np.log(1 - shares)).mean())


def test_the_loss_is_binary_cross_entropy_with_labels_smoothed_to_a_half() -> None:
    for smoothing in (0.0, 0.2):
        loss, metrics = objective(label_smoothing=smoothing)(Fixed(), torch.zeros(4, 1), LABELS, 0)
        targets = LABELS.double().numpy() * (1 - smoothing) + smoothing / 2
        assert float(loss) == pytest.approx(binary_loss(targets), rel=1e-6)
        expected = f1_score(LABELS.numpy(), LOGITS.numpy() > 0, average="micro")
        assert float(metrics["f1"]) == pytest.approx(100 * expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "beta"), [("inverse", 0.0), ("effective", 0.9)])
def test_weights_make_rare_labels_count_more(kind: str, beta: float) -> None:
    loss, _ = objective(label_smoothing=0.0, class_weights=kind, class_weight_beta=beta)(
        Fixed(), torch.zeros(4, 1), LABELS, 0
    )
    positive = LABELS.double().numpy().sum(0)
    ratio = (4 - positive) / positive
    if kind == "effective":
        ratio = (1 - beta ** (4 - positive)) / (1 - beta**positive)
    assert float(loss) == pytest.approx(binary_loss(LABELS.double().numpy(), ratio), rel=1e-5)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixed_images_have_the_labels_of_both_in_the_same_shares(options: dict[str, float]) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen["x"] = x.clone()
            return LOGITS

    images = torch.stack([torch.full((1, 16, 16), float(i)) for i in range(4)])
    made = objective(label_smoothing=0.1, **options)
    loss, _ = made(Watching(), images.clone(), LABELS, 3)
    own = 1 - (seen["x"][0].mean() / 3).double().item()  # the first is mixed with the last, of value 3
    assert 0 < own < 1
    smooth = LABELS.double().numpy() * 0.9 + 0.05
    assert float(loss) == pytest.approx(binary_loss(own * smooth + (1 - own) * smooth[::-1]), rel=1e-5)


def test_thresholds_give_the_highest_f1_that_there_is() -> None:
    probabilities = RNG.uniform(size=(60, 4)).astype(np.float32)
    labels = RNG.uniform(size=(60, 4)) < probabilities * np.array([1.0, 0.5, 0.1, 0.0])
    thresholds = choose_thresholds(probabilities, labels)
    for own, shares, threshold in zip(labels.T[:3], probabilities.T, thresholds, strict=False):

        def f1(threshold: float, own: np.ndarray = own, shares: np.ndarray = shares) -> float:
            return 2 * (own & (shares >= threshold)).sum() / (own.sum() + (shares >= threshold).sum())

        assert f1(threshold) == max(map(f1, shares))
    assert thresholds[3] == 0.5
    assert all(0 < t < 1 for t in thresholds)


def test_metrics_are_those_of_scikit_learn() -> None:
    probabilities = RNG.uniform(size=(50, 4)).astype(np.float32)
    labels = RNG.uniform(size=(50, 4)) < 0.3
    labels[:, 3] = False
    thresholds = [0.5, 0.4, 0.6, 0.999999]
    metrics = compute_multi_label_metrics(probabilities, labels, list("abcd"), thresholds, 1.0)
    predicted = probabilities >= np.array(thresholds)
    used = [i for i in range(4) if labels[:, i].any()]
    ap = [average_precision_score(labels[:, i], probabilities[:, i]) for i in used]
    assert metrics.map == pytest.approx(100 * np.mean(ap))
    assert metrics.micro_f1 == pytest.approx(100 * f1_score(labels, predicted, average="micro"))
    assert metrics.macro_f1 == pytest.approx(
        100 * f1_score(labels[:, used], predicted[:, used], average="macro")
    )
    assert metrics.exact_match == pytest.approx(100 * (labels == predicted).all(1).mean())
    assert metrics.per_class[3]["ap"] is None
    assert metrics.per_class[0]["f1"] == pytest.approx(100 * f1_score(labels[:, 0], predicted[:, 0]))
    assert float(micro_f1(np.zeros(3, bool), np.zeros(3, bool))) == 1
    assert "–" in str(metrics.tables("x")[1])


def multi_table(folder: Path, count: int = 40) -> Path:
    """Images, whose brightness and color say their labels, and a table of them."""
    image_folder(folder, {"images": count})
    rows = [f"{i}.png,{'cat|' * (i % 2)}{'dog' * (i % 3 == 0)}" for i in range(count)]
    (folder / "tags.csv").write_text("image,tags\n" + "\n".join(rows) + "\n")
    return folder / "tags.csv"


@functools.cache
def multi_run() -> Path:
    """A finished run of two labels, DATA next to it."""
    folder = Path(tempfile.mkdtemp())
    data = multi_table(folder / "data")
    return train_multi(folder / "run", data)


def train_multi(run: Path, data: Path, **changes: Any) -> Path:
    options = {"data": str(data), "in_chans": 3, "epochs": 2, "test_fraction": 0.2, "val_fraction": 0.3}
    return train_tiny(run, **options | changes)


def test_a_run_keeps_thresholds_and_opens_everywhere() -> None:
    run = multi_run()
    content = json.loads((run / "config.json").read_text())
    assert content["problem_type"] == "multi_label_classification"
    predictor = atconv.load(run)
    assert isinstance(predictor, MultiLabelPredictor)
    val = predictor.evaluate(split="val")
    assert predictor.thresholds == content["thresholds"] == choose_thresholds(val.probabilities, val.labels)
    rows = read_rows(run / "metrics.csv")
    best = max(float(row["val_map"]) for row in rows)
    assert val.map == pytest.approx(best, rel=1e-6)
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    images = [predictor.open_image(run.parent / "data" / "images" / f"{i}.png") for i in range(3)]
    inputs = torch.stack([predictor.transform(image) for image in images])
    assert torch.equal(model(inputs).sigmoid(), predictor.infer_all(images))


def test_predictions_are_the_classes_above_their_thresholds() -> None:
    predictor: Any = atconv.load(multi_run())
    images = sorted((multi_run().parent / "data" / "images").glob("*.png"))[:8]
    for result in predictor([str(image) for image in images]):
        expected = {
            n for n, t in zip(predictor.classes, predictor.thresholds, strict=True) if result.scores[n] >= t
        }
        assert set(result.classes) == expected
        assert result.probabilities == sorted(result.probabilities, reverse=True)
    assert predictor(images[0], threshold=1.0)[0].rows() == [[str(images[0]), "none"]]
    assert len(predictor(images[0], threshold=0.0, top=1)[0].classes) == 1
    everything = run_atconv("predict", multi_run(), *images, "--threshold=0", "--csv").out.splitlines()
    assert len(everything) == 1 + 2 * len(images)
    nothing = run_atconv("predict", multi_run(), *images, "--threshold=1", "--csv").out.splitlines()
    assert nothing[1:] == [f"{image},,," for image in images]


@pytest.mark.plots
def test_an_evaluation_writes_its_tables_and_plots(tmp_path: Path) -> None:
    predictor: Any = atconv.load(multi_run())
    metrics = predictor.evaluate(split="all")
    predictor.save_evaluation(metrics, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "classes.png", "metrics.json", "mistakes.png", "per_class.csv", "predictions.csv",
    }  # fmt: skip
    assert json.loads((tmp_path / "metrics.json").read_text())["map"] == metrics.map
    first = read_rows(tmp_path / "predictions.csv")[0]
    assert first["labels"] == "; ".join(np.array(predictor.classes)[metrics.labels[0] > 0])


def json_or_bytes(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def test_a_resumed_run_ends_with_the_same_bits_and_keeps_its_thresholds(tmp_path: Path) -> None:
    data = multi_run().parent / "data" / "tags.csv"
    run = train_multi(tmp_path / "run", data)
    (run / "metrics.json").unlink()
    reset_accelerate()
    for _ in range(2):  # the second finds a finished run
        resume(run)
        reset_accelerate()
    for name in ("model.safetensors", "config.json", "split.json"):
        assert json_or_bytes(run / name) == json_or_bytes(multi_run() / name)


def test_other_data_are_evaluated_with_or_without_several_labels(tmp_path: Path) -> None:
    predictor: Any = atconv.load(multi_run())
    one = image_folder(tmp_path / "one", {"cat": 3, "dog": 2}, seed=9)
    metrics = predictor.evaluate(str(one))
    assert metrics.labels.tolist() == [[1, 0]] * 3 + [[0, 1]] * 2
    image_folder(tmp_path / "two", {"pics": 3}, seed=8)
    (tmp_path / "labels.csv").write_text("image,tags\n0.png,cat\n1.png,\n2.png,cat|dog\n")
    metrics = predictor.evaluate(str(tmp_path / "labels.csv"), images=str(tmp_path / "two" / "pics"))
    assert metrics.labels.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_what_does_not_fit_several_labels_is_said(tmp_path: Path) -> None:
    data, run = multi_run().parent / "data" / "tags.csv", multi_run()
    one = image_folder(tmp_path / "one", {"cat": 9, "dog": 9})
    single = train_multi(tmp_path / "single", one, epochs=1)
    train = functools.partial(train_multi, tmp_path / "x", distill="soft")
    predictor: Any = atconv.load(single)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: train(data, teacher=str(single)), "distillation is for one"),
        (lambda: train(one, teacher=str(run)), "gives several labels an image"),
        (lambda: predictor.evaluate(str(data)), "has several labels an image"),
        (lambda: predictor(np.zeros((8, 8, 3), np.uint8), threshold=0.5), "threshold is for several"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "x").exists()
    analyzed = run_atconv("analyze", run, data.parent / "images")
    assert (analyzed.code, "only runs of one class each are analyzed" in analyzed.err) == (2, True)


def test_weights_of_the_other_kind_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = image_folder(tmp_path / "a", {"cat": 9, "dog": 9})
    with caplog.at_level("INFO"):
        train_multi(tmp_path / "one", data, epochs=1, checkpoint=str(multi_run()))
    assert [m for m in caplog.messages if "trained for several labels an image, this run is for one" in m]


def test_damaged_thresholds_name_the_file(tmp_path: Path) -> None:
    content = json.loads((multi_run() / "config.json").read_text())
    for damage in ([0.5], [0.5, 7.0], "x", [None, 0.5]):
        for path in multi_run().iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(content | {"thresholds": damage}))
        with pytest.raises(ValueError, match=r"config.json is damaged"):
            atconv.load(tmp_path)


def test_the_example_says_of_an_exported_run_what_predict_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassificationExporter, "fixed_batch", False)  # the example reads the other file
    run = multi_run()
    atconv.load(run).export()
    image = run.parent / "data" / "images" / "3.png"
    main = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "onnx_predict.py"))["main"]
    described = json.loads((run / "export" / "export.json").read_text())
    for threshold in (None, 0.0, 1.0):
        if threshold is not None:
            described["outputs"]["logits"]["thresholds"] = [threshold, threshold]
            (run / "export" / "export.json").write_text(json.dumps(described))
        [expected] = atconv.load(run)(image, threshold=threshold)
        main(run / "export", [str(image)])
        assert capsys.readouterr().out == f"{image}: {expected.rows()[0][1]}\n"


def test_the_card_says_how_timm_gives_what_predict_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(publish(str(multi_run()), str(tmp_path / "model")))
    card = (folder / "README.md").read_text()
    assert "each class whose probability reaches its threshold" in card
    assert "one for every image" not in card
    [code] = [
        part for part in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "import atconv, timm" in part
    ]
    shutil.copyfile(multi_run().parent / "data" / "images" / "3.png", tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name: folder / name)
    exec(code.replace("hf-hub:USER/run", f"local-dir:{folder}"), {})
    printed = dict(ast.literal_eval(capsys.readouterr().out))
    [result] = atconv.load(folder)("image.jpg")
    expected = dict(zip(result.classes, result.probabilities, strict=True))
    assert printed == pytest.approx(expected, abs=1e-5)
