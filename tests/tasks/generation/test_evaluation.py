"""Distances between sets of images: known answers, honest names, safe weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from atconv.engine.run import Run
from atconv.tasks.generation import features as features_module
from atconv.tasks.generation.commands import evaluate_samples
from atconv.tasks.generation.features import FeatureModel, InceptionFeatures, RunFeatures, open_features
from atconv.tasks.generation.metrics import GenerationMetrics, classifier_labels, compare, memorization
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.generation.samples import SampleSet, write_npz, write_pngs
from atconv.tasks.generation.sampling import SamplerConfig
from support.tiny import image_folder, trained_run
from support.tiny_sit import generate_here, generation_run, unconditional_run

CPU = torch.device("cpu")


class Flat(FeatureModel):
    """Pixels themselves as features."""

    title, inception = "pixels", False

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        flat = torch.from_numpy(images.reshape(len(images), -1)).float()
        return flat, flat[:, :2]


def images_of(count: int, seed: int = 0, high: int = 120) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, high, (count, 2, 2, 1), dtype=np.uint8)


def compared(samples: NDArray[np.uint8], real: NDArray[np.uint8]) -> GenerationMetrics:
    return compare(SampleSet(samples), SampleSet(real), Flat(), 16)


# Metrics.


def test_a_set_is_at_no_distance_from_itself() -> None:
    images = images_of(60)
    result = compared(images, images.copy())
    assert result.frechet_distance == pytest.approx(0, abs=1e-3)
    assert result.precision == result.recall == 100
    assert (result.images, result.real_images, result.features) == (60, 60, "pixels")
    assert result.inception_score is None
    assert result.classifier_accuracy is None


def test_a_shifted_set_is_at_the_squared_length_of_the_shift() -> None:
    images = images_of(80)
    result = compared(images + np.uint8(10), images)
    assert result.frechet_distance == pytest.approx(4 * 10**2, rel=1e-5)


def test_a_stretched_set_is_at_the_distance_of_the_two_normal_distributions() -> None:
    images = images_of(80)
    flat = images.reshape(80, -1).astype(float)
    # Twice the numbers: means differ by the mean, deviations by the deviation.
    expected = (flat.mean(0) ** 2).sum() + np.trace(np.cov(flat, rowvar=False))
    assert compared(2 * images, images).frechet_distance == pytest.approx(expected, rel=1e-5)


def test_sets_far_from_each_other_have_neither_precision_nor_recall() -> None:
    result = compared(images_of(40, high=20), images_of(40, seed=1, high=20) + np.uint8(200))
    assert result.precision == result.recall == 0


def test_repeated_samples_have_precision_without_recall() -> None:
    real = images_of(60)
    result = compared(np.repeat(real[:1], 60, axis=0), real)
    assert result.precision == 100
    assert result.recall < 10


def test_the_kernel_distance_of_one_distribution_is_near_zero_and_grows_with_a_shift() -> None:
    class Scaled(Flat):
        def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
            flat, logits = super().__call__(images)
            return flat / 120, logits

    def kernel(samples: NDArray[np.uint8]) -> float:
        real = SampleSet(images_of(200, seed=1))
        return compare(SampleSet(samples), real, Scaled(), 64).kernel_distance

    same, shifted = kernel(images_of(200)), kernel(images_of(200) + np.uint8(60))
    assert abs(same) < 0.05 * shifted


def test_too_few_images_are_rejected() -> None:
    with pytest.raises(ValueError, match="got 4 samples and 60 real ones"):
        compared(images_of(4), images_of(60))


# Names.


def metrics(title: str, score: float | None) -> GenerationMetrics:
    return GenerationMetrics(
        split="train",
        images=5,
        images_per_second=1.0,
        real_images=5,
        features=title,
        frechet_distance=1.0,
        kernel_distance=0.1,
        precision=50.0,
        recall=50.0,
        inception_score=score,
        classifier_accuracy=None,
    )


def shown(result: GenerationMetrics) -> str:
    return str(result.tables("title")[0])


def test_distances_are_called_fid_in_inceptions_features_alone() -> None:
    assert re.search(r"\bFID\b.*\n.*\bKID\b", shown(metrics("Inception", 2.0)))
    other = shown(metrics("features of runs/mine", None))
    assert "FID" not in other
    assert "KID" not in other
    assert "Fréchet distance" in other
    assert "features of runs/mine" in other


def test_a_run_that_is_named_after_inception_gives_no_fid() -> None:
    assert "FID" not in shown(metrics("features of runs/Inception-like", None))


def test_a_runs_features_are_those_before_its_classifier() -> None:
    model = open_features(str(trained_run()), None, CPU)
    assert isinstance(model, RunFeatures)
    assert not model.inception
    assert model.title == f"features of {trained_run()}"
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    features, logits = model(images)
    assert logits.shape == (3, 10)
    with torch.inference_mode():
        torch.testing.assert_close(model.model.head.fc(features), logits)
    color = np.repeat(images, 3, axis=3)
    torch.testing.assert_close(model(color)[1], logits, rtol=1e-3, atol=1e-3)


# Inception.


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the real file."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **options: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        model = FeatureExtractorInceptionV3("inception", ["2048"], "none")
    torch.save(model.state_dict(), path)
    return path


def test_the_inception_path_works_with_the_right_hash(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr(features_module, "_SHA256_PREFIX", digest[:8])
    model = open_features("inception", inception_file, CPU)
    assert isinstance(model, InceptionFeatures)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    result = compare(SampleSet(images), SampleSet(images), model, 6)
    assert result.features == "Inception"
    assert result.inception_score is not None
    assert result.inception_score >= 1
    assert result.frechet_distance == pytest.approx(0, abs=1e-2)
    features, logits = model(images[:2])
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    torch.testing.assert_close(model(np.repeat(images[:2], 3, axis=3))[0], features)


class _Harmful:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return open, (str(self.victim), "w")


def test_another_inception_file_is_rejected_before_it_is_unpickled(tmp_path: Path) -> None:
    path, victim = tmp_path / "weights.pth", tmp_path / "victim"
    path.write_bytes(pickle.dumps(_Harmful(victim)))
    with pytest.raises(ValueError, match=r"not the Inception file that FID is defined by.*not 6726825d"):
        open_features("inception", path, CPU)
    assert not victim.exists()


def test_missing_inception_weights_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such Inception weights"):
        open_features("inception", tmp_path / "none.pth", CPU)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"this is offline: put weights-inception.* or use --features RUN"):
        open_features("inception", None, CPU)


def test_a_kept_inception_file_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / features_module._FILE).write_bytes(b"half a download")
    with pytest.raises(ValueError, match="not the Inception file"):
        open_features("inception", None, CPU)


# Memorization.


def test_copies_are_detected() -> None:
    train, held_out = images_of(200), images_of(100, seed=1)
    copies = memorization(SampleSet(train[:50]), SampleSet(train), SampleSet(held_out))
    assert (copies.median, copies.ratio) == (0, 0)
    assert copies.below_first_percentile == 100
    other = memorization(SampleSet(images_of(100, seed=2)), SampleSet(train), SampleSet(held_out))
    assert other.ratio == pytest.approx(1, abs=0.25)
    assert other.below_first_percentile <= 5


def test_mirrored_copies_are_detected_where_training_mirrored() -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8) for seed in (0, 1)]
    train, held_out = SampleSet(images[0]), SampleSet(images[1])
    mirrored = SampleSet(np.ascontiguousarray(images[0][:, :, ::-1]))
    assert memorization(mirrored, train, held_out).below_first_percentile < 20
    result = memorization(mirrored, train, held_out, mirrored=True)
    assert (result.median, result.below_first_percentile) == (0, 100)


def test_held_out_images_that_are_copies_tell_nothing() -> None:
    images = SampleSet(np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="most held-out images are copies of training images"):
        memorization(images, images, images)


def test_distances_to_the_nearest_image_are_euclidean() -> None:
    train = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    held_out, samples = train + np.uint8(51), train + np.uint8(102)
    result = memorization(SampleSet(samples), SampleSet(train), SampleSet(held_out))
    assert result.held_out_median == pytest.approx(np.sqrt(4) * 0.2, rel=1e-4)
    assert result.median == pytest.approx(np.sqrt(4) * 0.4, rel=1e-4)
    assert result.ratio == pytest.approx(2, rel=1e-4)


def test_images_of_other_sizes_have_no_distance() -> None:
    small, large = SampleSet(images_of(5)), SampleSet(np.zeros((5, 4, 4, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="samples and training images have different sizes"):
        memorization(large, small, small)


# The command.


def test_a_run_is_evaluated_in_a_classifiers_features() -> None:
    run = generation_run()
    generate_here(
        "evaluate", run, "digits", f"--features={trained_run()}", "--images=40", "--steps=3",
        "--memorization", "--guidance=1.5", "--device=cpu",
    )  # fmt: skip
    saved = json.loads((run / "evaluation" / "digits-train" / "metrics.json").read_text())
    shutil.rmtree(run / "evaluation")
    fields = {field.name for field in dataclasses.fields(GenerationMetrics)} - {"per_class", "sampling"}
    assert fields <= set(saved)
    assert saved["features"] == f"features of {trained_run()}"
    assert (saved["images"], saved["evaluations_per_image"], saved["guidance"]) == (40, 6, 1.5)
    assert (saved["seed"], saved["steps"], saved["sampler"]) == (0, 3, "heun")
    assert saved["seconds_per_image"] > 0
    assert saved["frechet_distance"] > 0
    assert saved["inception_score"] is None
    assert 0 <= saved["classifier_accuracy"] <= 100
    assert saved["memorization"]["ratio"] > 0.5


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("nowhere", {}, "nowhere"),
        ("digits", dict(split="tset"), "digits has no tset split, only train, val, test"),
        ("real.npz", dict(memorization=True), "memorization is looked for in samples of a run"),
    ],
)
def test_errors_come_before_sampling(
    data: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "real.npz", images_of(6), None)
    monkeypatch.setattr(
        "atconv.tasks.generation.predictor.sample_images", lambda *_: pytest.fail("it sampled")
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_samples(generation_run(), data, features=str(trained_run()), device="cpu", **options)


def test_labels_are_compared_by_the_names_of_their_classes() -> None:
    classes = RunFeatures(trained_run(), torch.device("cpu")).classes
    samples = SampleSet(images_of(6), [0, 1, 2, 0, 1, 2], ["7", "3", "9"])
    assert classifier_labels(samples, classes) == [7, 3, 9, 7, 3, 9]
    assert classifier_labels(SampleSet(images_of(2), [0, 1], ["7", "cat"]), classes) is None
    assert classifier_labels(SampleSet(images_of(2), [4, 1]), classes) == [4, 1]


def test_an_npz_file_is_compared_with_another(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", images, None)
    write_npz(tmp_path / "real.npz", images, None)
    result = evaluate_samples(
        tmp_path / "samples.npz", str(tmp_path / "real.npz"), features=str(trained_run()), device="cpu"
    )
    assert result.frechet_distance == pytest.approx(0, abs=1e-3)
    assert json.loads((tmp_path / "samples.json").read_text()) == result.to_dict()


def test_samples_are_compared_with_the_images_of_data(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", images, [0] * 20)
    result = evaluate_samples(
        tmp_path / "samples.npz", "digits", features=str(trained_run()), real_images=50, device="cpu"
    )
    assert (result.images, result.real_images, result.split) == (20, 50, "all")
    assert result.frechet_distance > 1e-4
    assert result.classifier_accuracy is not None


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (generation_run, ["--features=inception"], "FID needs the Inception weights"),
        (generation_run, ["--features=/nowhere/run"], "no such run folder: /nowhere/run"),
        (unconditional_run, ["--guidance=2"], "set guidance to 1"),
        (generation_run, ["--images=3"], "got 3 samples"),
        (generation_run, ["--split=tests"], "split"),
        (trained_run, [], "is a classification run, not a generation run: use atconv evaluate"),
        (generation_run, ["--images=0"], "images must be at least 1, got 0"),
        (generation_run, ["--batch-size=0"], "batch_size must be at least 1, got 0"),
        (generation_run, ["--features=GENERATION_RUN"], "is a generation run: it has no classifier"),
        (lambda: Path("/nowhere/samples"), [], "no such samples: /nowhere/samples"),
    ],
)
def test_what_cannot_be_evaluated_is_rejected_in_one_line(
    samples: Any,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = samples()
    options = [option.replace("GENERATION_RUN", str(generation_run())) for option in options]
    chosen = (
        options
        if any("--features" in option for option in options)
        else [f"--features={trained_run()}", *options]
    )
    if not any("--images" in option for option in options):
        chosen.append("--images=10")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        generate_here("evaluate", folder, "digits", "--steps=1", "--device=cpu", *chosen)
    line = capsys.readouterr().err
    assert stopped.value.code == 2
    assert line.count("\n") == 1, line
    assert message in line


# What metrics are worth.


class Graded(Flat):
    """Pixels as features of a classifier of ten classes with an accuracy of its own."""

    def __init__(self, accuracy: float | None) -> None:
        self.accuracy = accuracy

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        flat, _ = super().__call__(images)
        return flat, torch.zeros(len(images), 10)


class Blind(Graded):
    """The same feature of every image, nearly."""

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        flat, logits = super().__call__(images)
        return torch.randn(flat.shape, generator=torch.Generator().manual_seed(len(images))), logits


def graded(model: FeatureModel) -> GenerationMetrics:
    return compare(SampleSet(images_of(60, high=20)), SampleSet(images_of(60, seed=1, high=20)), model, 16)


def test_a_poor_classifier_gives_no_verdict() -> None:
    result = graded(Graded(43.0))
    assert result.no_verdict is not None
    assert "right for 43.0 % only" in result.no_verdict
    assert result.no_verdict in result.warnings
    table = shown(result)
    assert re.search(r"accuracy of the feature network.*43\.0 %", table)
    for name in ("Fréchet distance", "kernel distance", "precision", "recall"):
        assert re.search(rf"{name} .*no verdict", table), name


@pytest.mark.parametrize("accuracy", [92.0, None])
def test_a_good_classifier_gives_one(accuracy: float | None) -> None:
    result = graded(Graded(accuracy))
    assert result.no_verdict is None
    assert result.noise_precision is not None
    assert result.noise_precision < 5
    assert result.feature_accuracy == accuracy
    assert "no verdict" not in shown(result)


def test_features_that_take_noise_for_images_give_no_verdict() -> None:
    result = graded(Blind(99.0))
    assert result.noise_precision is not None
    assert result.noise_precision > 50
    assert "give pure noise a precision of" in str(result.no_verdict)
    assert "no verdict" in shown(result)


def test_few_images_are_said_to_make_distances_too_large() -> None:
    assert any(
        "5 samples and 60 real images are few" in text
        for text in compared(images_of(5), images_of(60)).warnings
    )
    assert compared(images_of(1000), images_of(1000, seed=1)).warnings == []


def test_metrics_of_other_settings_are_not_written_over(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", images, None)
    options: dict[str, Any] = dict(features=str(trained_run()), device="cpu")
    for count in (50, 60, 50):
        evaluate_samples(tmp_path / "samples.npz", "digits", real_images=count, **options)
    written = {path.name: json.loads(path.read_text())["real_images"] for path in tmp_path.glob("*.json")}
    assert written == {"samples.json": 50, "samples-2.json": 60}


def test_metrics_of_another_sampler_are_kept_beside_those_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(generation_run(), run)
    common = [
        "evaluate",
        run,
        "digits",
        f"--features={trained_run()}",
        "--images=20",
        "--steps=2",
        "--device=cpu",
    ]
    for sampler in ("heun", "sde_euler", "heun"):
        generate_here(*common, f"--sampler={sampler}")
    saved = {
        path.parent.name: json.loads(path.read_text())["sampler"] for path in run.glob("evaluation/*/*.json")
    }
    assert saved == {"digits-train": "heun", "digits-train-2": "sde_euler"}


def test_a_file_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", images, None)
    (tmp_path / "samples.json").write_text("my notes")
    evaluate_samples(
        tmp_path / "samples.npz", "digits", features=str(trained_run()), real_images=50, device="cpu"
    )
    assert (tmp_path / "samples.json").read_text() == "my notes"
    assert (tmp_path / "samples-2.json").is_file()


def test_other_sizes_and_color_against_gray_are_said(tmp_path: Path) -> None:
    color = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    write_npz(tmp_path / "samples.npz", color, None)
    options: dict[str, Any] = dict(features=str(trained_run()), real_images=50, device="cpu")
    said = evaluate_samples(tmp_path / "samples.npz", "digits", **options).warnings
    assert any("samples are 12 × 12 and real images 8 × 8" in text for text in said)
    assert any("samples are in color and real images gray" in text for text in said)
    write_npz(tmp_path / "gray.npz", color[:, :8, :8, :1], None)
    said = evaluate_samples(tmp_path / "gray.npz", "digits", **options).warnings
    assert not [text for text in said if "real images gray" in text or "and real images 8" in text]


def test_other_sizes_than_those_of_its_own_images_are_said_of_a_run(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", {"a": 20, "b": 20}, size=12)
    options: dict[str, Any] = dict(features=str(trained_run()), images=20, options=SamplerConfig(steps=1))
    predictor = GenerationPredictor.open(Run.open(generation_run()))
    said = predictor.evaluate(str(folder), **options).warnings
    assert any("samples are 8 × 8 and real images 12 × 12" in text for text in said)
    said = predictor.evaluate(real_images=40, **options).warnings
    assert not any("resizing adds to the distance" in text for text in said)


def test_features_are_checked_before_the_images_of_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "atconv.tasks.generation.evaluation.readable_split", lambda *_: pytest.fail("it read images")
    )
    folder = image_folder(tmp_path / "images", {"a": 20, "b": 20})
    write_npz(tmp_path / "samples.npz", images_of(20), None)
    with pytest.raises(FileNotFoundError, match="no such run folder: nowhere"):
        evaluate_samples(tmp_path / "samples.npz", str(folder), features="nowhere", device="cpu")


def test_the_accuracy_of_a_run_is_read_from_its_metrics() -> None:
    saved = json.loads((trained_run() / "metrics.json").read_text())
    assert RunFeatures(trained_run(), CPU).accuracy == saved["top1"]


def test_data_that_is_not_there_is_named_before_weights_are_looked_for() -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        evaluate_samples(generation_run(), "nowhere", device="cpu", inception_weights="none.pth")


def test_metrics_of_a_folder_are_not_written_into_the_data_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "photos" / "test"
    write_pngs(data, images_of(20), [str(i) for i in range(20)])
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluate_samples(data, "digits", features=str(trained_run()), real_images=50, device="cpu")
    written = {*tmp_path.rglob("*.json")}
    assert written == {tmp_path / "here" / "runs" / "evaluation" / "test.json"}
    assert sorted(data.parent.parent.rglob("photos/**/*")) == [p for p in before if p != data.parent]
