"""`atconv generate train`: it learns, resumes exactly, shares its work, and rejects what does not fit."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atconv.data.loaders import SampleKey
from atconv.diffusion import SiTPipeline
from atconv.diffusion.interpolants import Linear, make_interpolant
from atconv.engine.checkpoint import latest_checkpoint, load_checkpoint
from atconv.engine.config import TrainConfig
from atconv.engine.run import Run
from atconv.models.sit import SiT, create_sit
from atconv.tasks import resume
from atconv.tasks.generation import SPEC
from atconv.tasks.generation.config import GenerationConfig, TimeSampling
from atconv.tasks.generation.data import SampleDataset, TrainingExamples
from atconv.tasks.generation.repa import AlignedSiT, FrozenEncoder, alignment_loss
from support.tiny import KillAt, atconv, image_folder, read_rows, reset_accelerate, trained_run
from support.tiny_sit import (
    FAMILIES,
    atconv_generate,
    generate_here,
    generation_run,
    inputs_of,
    tiny_run_config,
    tiny_run_options,
    tiny_sit,
    train_tiny_sit,
    unconditional_run,
)

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in read_rows(run / "metrics.csv")]


# What training does.


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss(family: str, tmp_path: Path) -> None:
    name = {"attention": "sit_s_2", "atconv": "sit_atconv_s_2", "hybrid": "sit_hybrid_s_2"}[family]
    run = train_tiny_sit(tmp_path / "run", model=name, epochs=5, lr=8e-3)
    losses = column(run, "val_loss")
    # A model that always says zero has a loss of 1 + the mean square of the data: 1.65.
    assert losses[0] > 1
    assert losses[-1] < 0.9 * losses[0]
    assert column(run, "train_loss")[-1] < column(run, "train_loss")[0]


@pytest.mark.parametrize(
    "changes",
    [
        dict(prediction="noise"),
        dict(prediction="score", interpolant="gvp"),
        dict(interpolant="vp"),
        dict(interpolant="gvp", time_sampling="logit_normal"),
        dict(interpolant="vp", prediction="noise", time_sampling="edm"),
        dict(time_sampling="edm", precision="bf16", grad_checkpointing=True),
        dict(in_chans=3, hflip=0.5, batch_size=16, clip_grad=1.0, ema_decay=0.0),
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_every_interpolant_prediction_and_time_sampling_trains_and_samples(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    run = train_tiny_sit(tmp_path / "run", epochs=3, lr=4e-3, **changes)
    losses = column(run, "val_loss")
    assert losses[-1] < losses[0]
    pipeline = SiTPipeline.from_pretrained(run)
    assert pipeline.config.interpolant == changes.get("interpolant", "linear")
    assert pipeline.config.prediction == changes.get("prediction", "velocity")
    assert pipeline.scheduler.config.interpolant == changes.get("interpolant", "linear")
    images = pipeline([3, 7], num_inference_steps=4, guidance_scale=2.0, output_type="latent").images
    assert images.shape == (2, changes.get("in_chans", 1), 8, 8)
    assert images.isfinite().all()


def test_a_model_without_classes_is_trained_without_labels() -> None:
    run = unconditional_run()
    model = SiTPipeline.from_pretrained(run).transformer
    assert model.num_classes == 0
    assert model.label_embed is None


@pytest.mark.plots
def test_a_run_holds_what_it_says(tmp_path: Path) -> None:
    run = train_tiny_sit(tmp_path / "run", epochs=4, sample_every=2)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch-0002.png", "epoch-0004.png"]
    for name in ("config.yaml", "split.json", "model_index.json", "samples.png", "curves.png", WEIGHTS,
                 "scheduler/scheduler_config.json"):  # fmt: skip
        assert (run / name).is_file(), name
    summary = json.loads((run / "metrics.json").read_text())
    assert (summary["epochs"], summary["steps"]) == (4, 40)
    assert summary["val_loss"] == column(run, "val_loss")[-1]
    assert [row["layer"] for row in read_rows(run / "inhibition.csv")[:2]] == [
        "blocks.0.mixer",
        "blocks.1.mixer",
    ]
    assert SPEC.read_config(Run.open(run)) == tiny_run_config(epochs=4, sample_every=2)


def test_the_last_ema_is_what_is_kept() -> None:
    run = generation_run()
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state, kept = load_checkpoint(newest), load_file(run / WEIGHTS)
    assert state["ema"].keys() == kept.keys()
    assert all(torch.equal(kept[name], state["ema"][name]) for name in kept)
    assert not all(torch.equal(kept[name], state["model"][name]) for name in kept)


def test_a_long_average_of_a_short_run_is_of_trained_weights(tmp_path: Path) -> None:
    run = train_tiny_sit(tmp_path / "run", epochs=3, lr=8e-3, ema_decay=0.9999)
    assert column(run, "val_loss")[-1] < 0.95 * column(run, "val_loss")[0]


def test_an_average_that_stays_untrained_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_tiny_sit(tmp_path / "run", ema_decay=0.9999, ema_warmup=False)
    assert "after all 10 steps the moving average is still 100 % untrained weights" in caplog.text


def test_the_recipe_of_the_release_warms_its_average_up() -> None:
    import yaml

    recipe = yaml.safe_load(SPEC.recipe_path("sit").read_text())
    config = GenerationConfig(**({"data": "digits"} | recipe))
    assert (config.ema_decay, config.ema_warmup) == (0.9999, True)


def test_the_validation_loss_of_a_model_does_not_depend_on_batches_or_chance(tmp_path: Path) -> None:
    one = train_tiny_sit(tmp_path / "one", lr=1e-30, min_lr=0.0, batch_size=32)
    other = train_tiny_sit(tmp_path / "other", lr=1e-30, min_lr=0.0, batch_size=8)
    assert column(one, "val_loss") == pytest.approx(column(other, "val_loss"), rel=1e-5)


def test_training_starts_from_another_run_of_other_classes_and_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = generation_run()
    with caplog.at_level("INFO", "atconv"):
        run = train_tiny_sit(
            tmp_path / "run",
            data=str(image_folder(tmp_path / "data", {"ant": 20, "bee": 20})),
            checkpoint=str(source),
            lr=1e-30,
            min_lr=0.0,
            ema_decay=0.0,
            model_args={"depth": 9},
            image_size=16,
            in_chans=3,
        )
    for line in (
        "classes: 10 in {}, 2 here; the label embedding is newly initialized",
        "height and width of samples: [8, 8] in {}, [16, 16] here; the weights stay as they are",
        "in_chans: 1 in {}, 3 here; 1 is taken with the weights",
    ):
        assert line.format(source) in caplog.messages
    ours, theirs = load_file(run / WEIGHTS), load_file(source / WEIGHTS)
    assert len(ours.pop("label_embed.weight")) == 3  # the null label is one
    del theirs["label_embed.weight"]
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "option", ["--interpolant=gvp", "--model-args={depth: 3}", "--model=sit_s_2", "--no-conditional"]
)
def test_options_that_contradict_the_run_started_from_are_rejected(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--checkpoint={generation_run()}", "--config=digits", option, f"--out={tmp_path / 'run'}"]
    line = one_line(capsys, "train", "digits", *options)
    name = option.partition("=")[0].replace("--no-", "--")
    assert f"contradicts --checkpoint {generation_run()}" in line
    assert line.rstrip().endswith(f"leave {name} out")


def test_weights_of_a_run_without_classes_make_another_without(tmp_path: Path) -> None:
    run = train_tiny_sit(tmp_path / "run", checkpoint=str(unconditional_run()))
    assert SiTPipeline.from_pretrained(run).transformer.num_classes == 0


def test_training_starts_from_the_authors_file_and_rejects_another(tmp_path: Path) -> None:
    torch.save({"ema": {"conv.weight": torch.ones(3)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="It is not a SiT checkpoint"):
        train_tiny_sit(tmp_path / "run", checkpoint=str(tmp_path / "other.pt"))
    assert not (tmp_path / "run").exists()
    sit = create_sit(
        "sit_atconv_s_2",
        hidden_size=32,
        depth=2,
        num_heads=2,
        in_channels=1,
        num_classes=10,
        learn_sigma=False,
    )
    sit.head.linear.bias.data.fill_(3.0)
    torch.save({"model": sit.state_dict()}, tmp_path / "file.pt")
    run = train_tiny_sit(
        tmp_path / "run", checkpoint=str(tmp_path / "file.pt"), lr=1e-30, min_lr=0.0, ema_decay=0.0
    )
    assert float(load_file(run / WEIGHTS)["head.linear.bias"].mean()) == pytest.approx(3.0, abs=1e-4)


# Examples.


class Ramp(SampleDataset):
    """One sample of all its own position, labeled by it."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__([0, 1, 2])

    def load(self, position: int, flip: bool = False, rng: torch.Generator | None = None) -> Tensor:
        return torch.full(self.shape, float(position)) * (-1 if flip else 1)

    def image(self, position: int, flip: bool = False) -> Tensor:
        return self.load(position, flip)


def times_of(sampling: TimeSampling, interpolant: str, count: int = 4000) -> Tensor:
    chosen = make_interpolant(interpolant)
    examples = TrainingExamples(Ramp(), chosen, chosen.interval("velocity", False), sampling)
    return torch.stack([examples[SampleKey(1, seed)].t for seed in range(count)])


def test_times_have_the_distribution_of_the_option() -> None:
    uniform = times_of("uniform", "linear")
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(uniform.std()) == pytest.approx(math.sqrt(1 / 12), rel=0.05)
    logits = times_of("logit_normal", "linear").double().logit()
    assert float(logits.mean()) == pytest.approx(0.0, abs=0.06)
    assert float(logits.std()) == pytest.approx(1.0, rel=0.05)
    for name in ("linear", "vp"):
        t, interpolant = times_of("edm", name).double(), make_interpolant(name)
        ratio = (interpolant.sigma(t) / interpolant.alpha(t)).log()
        assert float(ratio.mean()) == pytest.approx(-1.2, abs=0.08), name
        assert float(ratio.std()) == pytest.approx(1.2, rel=0.05), name


def test_an_example_is_a_function_of_its_key() -> None:
    options: dict[str, Any] = dict(hflip=0.5, label_dropout=0.3, null_label=9)
    examples = TrainingExamples(Ramp(), Linear(), (0.0, 1.0), "uniform", **options)
    one, again = examples[SampleKey(1, 5)], examples[SampleKey(1, 5)]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    several = [examples[SampleKey(1, seed)] for seed in range(2000)]
    assert sum(e.label.item() == 9 for e in several) / 2000 == pytest.approx(0.3, abs=0.04)
    assert {e.label.item() for e in several} == {1, 9}
    assert sum(bool((e.data < 0).all()) for e in several) / 2000 == pytest.approx(0.5, abs=0.04)
    noise = torch.stack([e.noise for e in several])
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


# REPA.


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return FrozenEncoder("vit_tiny_patch16_224", (4, 4), "none")


def test_repa_aligns_while_it_trains_and_leaves_no_projector(tmp_path: Path) -> None:
    run = train_tiny_sit(
        tmp_path / "run",
        epochs=2,
        test_fraction=0.74,
        batch_size=16,
        base_batch_size=16,
        lr=3e-3,
        repa_encoder="vit_tiny_patch16_224",
        repa_weights="none",
        repa_block=1,
    )
    alignment = column(run, "train_alignment")
    assert -1 <= alignment[-1] < alignment[0]
    losses = zip(column(run, "train_loss"), column(run, "train_velocity"), alignment, strict=True)
    assert all(loss == pytest.approx(match + 0.5 * part, rel=1e-4) for loss, match, part in losses)
    kept = load_file(run / WEIGHTS)
    plain = load_file(generation_run() / WEIGHTS)
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in plain.items()}
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert any("projector" in name for name in load_checkpoint(newest)["model"])
    assert SiTPipeline.from_pretrained(run)([1], num_inference_steps=2).images


def test_the_encoder_gives_a_token_for_each_patch_and_learns_nothing(encoder: FrozenEncoder) -> None:
    tokens = encoder(torch.rand(2, 1, 8, 8) * 2 - 1)
    assert tokens.shape == (2, 16, 192) == (2, 16, encoder.features)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.encoder.training
    gray = torch.rand(2, 1, 8, 8)
    assert torch.equal(encoder(gray), encoder(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vit_small_patch14_dinov2.lvd142m", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_the_encoder_sees_images_normalized_as_its_weights_want(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    encoder = FrozenEncoder(name, (2, 2), "none")
    seen: list[Tensor] = []
    encoder.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.full((1, 3, 8, 8), 0.2))
    expected = (0.6 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(seen[0].amax((0, 2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_alignment_is_minus_the_mean_cosine() -> None:
    tokens = torch.randn(2, 3, 5)
    assert float(alignment_loss(tokens, 4 * tokens)) == pytest.approx(-1)
    assert float(alignment_loss(tokens, -tokens)) == pytest.approx(1)
    angle = alignment_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]]))
    assert float(angle) == pytest.approx(-math.sqrt(0.5))


def test_the_projector_sees_the_tokens_of_its_block() -> None:
    model = AlignedSiT(tiny_sit(), 1, 48)
    given_inputs = inputs_of(model.sit)
    velocity, projected = model(*given_inputs)
    _, tokens = model.sit.forward_features(*given_inputs, block=1)
    assert torch.equal(velocity, model.sit(*given_inputs))
    assert torch.equal(projected, model.projector(tokens))
    assert projected.shape == (3, 16, 48)
    widths = [layer.out_features for layer in model.projector if isinstance(layer, torch.nn.Linear)]
    assert widths == [2048, 2048, 48]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vit_nonesuch", "none", "timm knows no encoder 'vit_nonesuch'"),
        ("resnet18", "none", "resnet18 has no patch tokens: REPA takes a ViT"),
        ("vit_tiny_patch16_224", "missing.pth", "no such checkpoint file: missing.pth"),
    ],
)
def test_encoders_that_do_not_exist_are_rejected(name: str, weights: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        FrozenEncoder(name, (2, 2), weights)


def test_an_encoder_reads_its_weights_from_a_file(encoder: FrozenEncoder, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in encoder.encoder.state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    opened = FrozenEncoder("vit_tiny_patch16_224", (4, 4), str(tmp_path / "vit.pth"))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(opened(image), encoder(image))
    del state["norm.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"norm\.weight is missing"):
        FrozenEncoder("vit_tiny_patch16_224", (4, 4), str(tmp_path / "short.pth"))


# Killed and resumed.

EPOCHS, STEPS_PER_EPOCH = 2, 10
OPTIONS = tiny_run_options(
    model="sit_hybrid_s_2",
    epochs=EPOCHS,
    checkpoint_steps=4,
    hflip=0.5,
    label_dropout=0.2,
    time_sampling="logit_normal",
    batch_size=16,
    warmup_epochs=0.5,
    sample_every=2,
)
POINTS = {
    "in mid-epoch": KillAt("torch.optim.AdamW.step", nth=7),
    "before the weights get their name": KillAt("os.replace", "diffusion_pytorch_model.safetensors"),
    "before the report": KillAt("atconv.tasks.generation.task.plot_curves"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = atconv_generate("train", "digits", *OPTIONS, f"--out={run}")
    assert ended.code == 0, ended.err
    return run


def metric_rows(run: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table, but for the speed of the machine."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / name)]


def assert_same_end(run: Path, expected: Path) -> None:
    last = f"checkpoints/step-{EPOCHS * STEPS_PER_EPOCH}"
    for name in (WEIGHTS, f"{last}/state.safetensors", "samples/epoch-0002.png", "samples.png"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("metrics.csv", "inhibition.csv"):
        assert metric_rows(run, name) == metric_rows(expected, name), name
    assert [path.name for path in (run / "checkpoints").iterdir()] == [Path(last).name]
    assert not [path for path in run.rglob("*") if path.name.startswith(".writing")]


@pytest.mark.parametrize("kill_at", POINTS.values(), ids=POINTS)
def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path, uninterrupted: Path, kill_at: KillAt) -> None:
    run = tmp_path / "run"
    ended = atconv_generate("train", "digits", *OPTIONS, f"--out={run}", kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, (ended.code, ended.err)
    ended = atconv_generate("train", "--resume", run)
    assert ended.code == 0, ended.err
    assert_same_end(run, uninterrupted)


def test_a_killed_run_with_an_encoder_resumes_to_the_same_end(tmp_path: Path) -> None:
    options = tiny_run_options(
        test_fraction=0.74, batch_size=16, base_batch_size=16, checkpoint_steps=2,
        repa_encoder="vit_tiny_patch16_224", repa_weights="none", repa_block=1,
    )  # fmt: skip
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    assert atconv_generate("train", "digits", *options, f"--out={complete}").code == 0
    kill_at = KillAt("torch.optim.AdamW.step", nth=4)
    ended = atconv_generate("train", "digits", *options, f"--out={killed}", kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, (ended.code, ended.err)
    assert atconv_generate("train", "--resume", killed).code == 0
    assert (killed / WEIGHTS).read_bytes() == (complete / WEIGHTS).read_bytes()


def test_resuming_a_finished_run_leaves_it_as_it_is(uninterrupted: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    reset_accelerate()
    resume(uninterrupted)
    left = {path: path.read_bytes() for path in before}
    assert [p.name for p in before if left[p] != before[p] and p.name != "log.txt"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("reset_compiler")
def test_a_compiled_run_learns_what_an_eager_one_learns(tmp_path: Path) -> None:
    eager = train_tiny_sit(tmp_path / "eager", lr=4e-3)
    compiled = train_tiny_sit(tmp_path / "compiled", lr=4e-3, compile=True)
    assert column(compiled, "val_loss") == pytest.approx(column(eager, "val_loss"), rel=1e-3)
    assert load_file(compiled / WEIGHTS).keys() == load_file(eager / WEIGHTS).keys()


# What stops it.


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+ .* Lower lr"):
        train_tiny_sit(tmp_path / "run", lr=1000, epochs=3, optimizer="momentum")
    assert not (tmp_path / "run" / "metrics.json").exists()


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line that a command rejected its input with."""
    with pytest.raises(SystemExit) as stopped:
        generate_here(*arguments)
    line = capsys.readouterr().err
    assert stopped.value.code == 2
    assert line.count("\n") == 1, line
    return line


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ("digits", dict(model="sit_atconv_m_2"), "no SiT 'sit_atconv_m_2'; there are sit_s_2"),
        ("digits", dict(model="attnet_xs"), "no SiT 'attnet_xs'"),
        ("digits", dict(model_args={"width": 3}), "sit_atconv_s_2 does not take model_args {'width': 3}"),
        ("digits", dict(model_args={"patch_size": 3}), "patches of 3 do not divide samples of 8 × 8"),
        ("digits", dict(label_dropout=1.0), "label_dropout must lie in [0, 1)"),
        ("digits", dict(image_size=0), "image_size must be at least 1"),
        ("digits", dict(in_chans=2), "in_chans must be 3 (color) or 1 (gray)"),
        ("digits", dict(interpolant="cosine"), "interpolant"),
        ("digits", dict(hflip=2.0), "hflip must lie in 0 … 1"),
        ("digits", dict(checkpoint="nowhere.pt"), "nowhere.pt"),
        ("nowhere", {}, "nowhere"),
        (
            "digits",
            dict(repa_encoder="vit_tiny_patch16_224", repa_weights="none", repa_block=3),
            "repa_block 3 is beyond the 2 blocks",
        ),
    ],
)
def test_what_cannot_be_trained_is_rejected_in_one_line(
    data: str, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert message in one_line(capsys, "train", data, *tiny_run_options(**changes), f"--out={run}")
    assert not run.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="sit_atconv_m_2"), "no SiT 'sit_atconv_m_2'"),
        (dict(model_args={"patch_size": 3}), "patches of 3 do not divide"),
        (dict(checkpoint="damaged.pt"), "damaged.pt"),
        (dict(checkpoint="unfinished"), "unfinished has no model yet"),
        (dict(repa_encoder="resnet18"), "resnet18 has no patch tokens"),
        (dict(repa_encoder="vit_tiny_patch16_224", repa_weights="nowhere.pt"), "nowhere.pt"),
        (dict(repa_encoder="vit_tiny_patch16_224", repa_weights="damaged.pt"), "damaged.pt"),
        (dict(repa_encoder="vit_tiny_patch16_224", repa_weights="none", repa_block=3), "repa_block 3"),
    ],
)
def test_a_wrong_model_is_named_before_images_are_read(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = generation_run()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "atconv.tasks.generation.task.open_splits", lambda *_, **__: pytest.fail("it read images")
    )
    Path("damaged.pt").write_bytes(b"half a download")
    Path("unfinished").mkdir()
    for name in ("config.yaml", "model_index.json"):
        shutil.copy(finished / name, "unfinished")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        train_tiny_sit(tmp_path / "run", **changes)


def test_an_empty_folder_is_rejected_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    line = one_line(capsys, "train", folder, *tiny_run_options(), f"--out={tmp_path / 'run'}")
    assert str(folder) in line


def test_a_folder_of_one_class_trains(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", {"only": 30})
    run = train_tiny_sit(tmp_path / "run", data=str(folder), test_fraction=0.15)
    assert SiTPipeline.from_pretrained(run).class_names == ["only"]


def test_a_classification_run_is_not_resumed_as_a_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert "generation" in one_line(capsys, "train", "--resume", trained_run())


def test_a_generation_run_is_not_resumed_as_a_classifier() -> None:
    ended = atconv("train", "--resume", generation_run())
    assert ended.code == 2
    assert "not a classification run: use atconv generate train --resume" in ended.err


@pytest.mark.parametrize("name", SPEC.recipe_names())
def test_recipes_are_configurations_of_models_that_exist(name: str) -> None:
    import yaml

    config = GenerationConfig(**({"data": "digits"} | yaml.safe_load(SPEC.recipe_path(name).read_text())))
    with torch.device("meta"):
        sit = create_sit(config.model, **{"learn_sigma": False, **config.model_args})
    assert isinstance(sit, SiT)
    assert isinstance(config, TrainConfig)
