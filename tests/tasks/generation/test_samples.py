"""Samples on disk: ADM's layout, folders, grids; the commands that write them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset

from atconv.diffusion import Field, ODEScheduler, SDEScheduler, SiTPipeline
from atconv.diffusion.interpolants import Linear
from atconv.tasks.generation.plots import grid_pixels, plot_grid
from atconv.tasks.generation.samples import (
    SampleSet,
    batches,
    parse_classes,
    random_subset,
    read_samples,
    write_npz,
    write_pngs,
)
from atconv.tasks.generation.sampling import SamplerConfig, image_generators
from support.gaussian import Gaussian
from support.tiny import trained_run
from support.tiny_sit import generate_here, generation_run, unconditional_run

NAMES = [str(i) for i in range(10)]


def images_of(count: int = 6, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# .npz.


def test_an_npz_file_is_as_adms_evaluator_reads_it(tmp_path: Path) -> None:
    images = images_of()
    write_npz(tmp_path / "samples.npz", images, [1, 2, 3, 4, 5, 6])
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (6, 8, 8, 3))
        assert (arrays["arr_1"].dtype, arrays["arr_1"].tolist()) == (np.int64, [1, 2, 3, 4, 5, 6])
    samples = read_samples(tmp_path / "samples.npz")
    assert np.array_equal(samples.images, images)
    assert samples.labels == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_gray_is_written_as_color_and_labels_may_be_missing(tmp_path: Path) -> None:
    images = images_of(channels=1)
    write_npz(tmp_path / "gray.npz", images, None)
    samples = read_samples(tmp_path / "gray.npz")
    assert np.array_equal(samples.images, np.repeat(images, 3, axis=3))
    assert samples.labels is None


def test_npz_files_of_other_programs_are_read(tmp_path: Path) -> None:
    """ADM's own files are written by np.savez(path, images, labels); some name no labels, or one-hot ones."""
    images = images_of()
    np.savez(tmp_path / "two.npz", images, np.arange(6))
    assert read_samples(tmp_path / "two.npz").labels == list(range(6))
    np.savez_compressed(tmp_path / "one.npz", images)
    assert np.array_equal(read_samples(tmp_path / "one.npz").images, images)
    np.savez(tmp_path / "odd.npz", images, np.eye(6))
    assert read_samples(tmp_path / "odd.npz").labels is None


class _Harmful:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return open, (str(self.victim), "w")


def test_a_pickled_npz_is_rejected_and_nothing_of_it_built(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "samples.npz"
    np.savez(path, np.array([_Harmful(victim)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not an \.npz file of samples"):
        read_samples(path)
    path.write_bytes(pickle.dumps(_Harmful(victim)))
    with pytest.raises(ValueError, match=r"is not an \.npz file of samples"):
        read_samples(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": images_of().astype(np.float32)}, r"it has arr_0 float32 \(6, 8, 8, 3\)"),
        ({"arr_0": images_of()[0]}, r"it has arr_0 uint8 \(8, 8, 3\)"),
        ({"arr_0": images_of(channels=4)}, r"it has arr_0 uint8 \(6, 8, 8, 4\)"),
        ({"images": images_of()}, "it has no arr_0"),
        ({"arr_0": images_of()[:0]}, "holds no images"),
    ],
)
def test_npz_files_of_something_else_are_rejected(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / "other.npz")


@settings(deadline=None, max_examples=40)
@given(fraction=st.floats(0.01, 0.999))
def test_a_truncated_npz_is_rejected(fraction: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "samples.npz"
    write_npz(path, images_of(2, 4), None)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match=r"samples\.npz"):
        read_samples(path)


def test_an_empty_npz_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "samples.npz").touch()
    with pytest.raises(ValueError, match=r"is not an \.npz file of samples"):
        read_samples(tmp_path / "samples.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_rejected(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    save(path, images_of(2, 8))
    with zipfile.ZipFile(path) as archive:
        offset = archive.infolist()[0].header_offset + 250
    content = bytearray(path.read_bytes())
    content[offset] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not an \.npz file of samples"):
        read_samples(path)


def test_missing_samples_are_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such samples"):
        read_samples(tmp_path / "none.npz")


# Folders.


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pngs_is_read_back(channels: int, tmp_path: Path) -> None:
    images = images_of(channels=channels)
    write_pngs(tmp_path / "out", images, [f"{i:03d}" for i in range(6)])
    assert {Image.open(path).mode for path in (tmp_path / "out").iterdir()} == {{1: "L", 3: "RGB"}[channels]}
    samples = read_samples(tmp_path / "out").images
    assert np.array_equal(
        np.broadcast_to(samples.reshape(6, 8, 8, -1), (6, 8, 8, 3)), np.broadcast_to(images, (6, 8, 8, 3))
    )


def test_folders_without_images_or_of_several_sizes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in"):
        read_samples(tmp_path)
    write_pngs(tmp_path, images_of(1, 8), ["a"])
    write_pngs(tmp_path, images_of(1, 4), ["b"])
    with pytest.raises(ValueError, match="differ in size"):
        read_samples(tmp_path)


def test_sets_give_their_images_in_order_and_parts_of_them() -> None:
    images = images_of(7)
    full = SampleSet(images)
    assert np.array_equal(np.concatenate(list(batches(full, 3))), images)
    part = random_subset(full, 4, seed=0)
    (chosen,) = batches(part, 4)
    assert len(chosen) == 4
    assert np.array_equal(chosen, next(batches(random_subset(full, 4, seed=0), 4)))
    assert random_subset(full, 7, seed=0) is full
    joined = np.concatenate(list(batches(ConcatDataset([full, part]), 5)))
    assert len(joined) == 11
    assert np.array_equal(joined[[0, 7]], np.stack([images[0], chosen[0]]))


# Options and seeds.

BAD: list[tuple[Callable[[], SamplerConfig], str]] = [
    (lambda: SamplerConfig(sampler="ddim"), "no sampler 'ddim'; there are euler"),
    (lambda: SamplerConfig(steps=0), "steps must be at least 1"),
    (lambda: SamplerConfig(guidance_interval=(0.6, 0.4)), "guidance_interval must be"),
    (lambda: SamplerConfig(guidance_interval=(-0.1, 0.4)), "guidance_interval must be"),
    (lambda: SamplerConfig(last_step_size=0.0), "last_step_size must lie between 0 and 1"),
    (lambda: SamplerConfig(last_step_size=1.0), "last_step_size must lie between 0 and 1"),
    (lambda: SamplerConfig(atol=0.0), "atol must be positive, got 0"),
    (lambda: SamplerConfig(diffusion_scale=-1.0), "diffusion_scale must not be negative"),
    (lambda: SamplerConfig(guidance=-3.0), "guidance must not be negative"),
    (lambda: SamplerConfig(last_step="euler"), "--last-step euler has no effect: the sampler heun does not"),
    (lambda: SamplerConfig(rtol=0.1), "--rtol 0.1 has no effect"),
    (lambda: SamplerConfig(sampler="sde_heun", atol=0.1), "--atol 0.1 has no effect"),
    (lambda: SamplerConfig(sampler="dopri5", steps=5), "--steps 5 has no effect"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_options_that_make_no_sense_are_rejected(make: Callable[[], SamplerConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("sampler", "kind", "method"),
    [("rk4", ODEScheduler, "rk4"), ("adaptive_heun", ODEScheduler, "adaptive_heun"),
     ("sde_euler", SDEScheduler, "euler"), ("sde_heun", SDEScheduler, "heun")],
)  # fmt: skip
def test_options_make_a_scheduler(sampler: str, kind: type, method: str) -> None:
    sde: Any = {"last_step": "tweedie", "diffusion": "sbdm"} if kind is SDEScheduler else {}
    options = SamplerConfig(sampler=sampler, **sde, **({"rtol": 1e-4} if sampler == "adaptive_heun" else {}))
    scheduler = options.scheduler("gvp", "noise")
    assert isinstance(scheduler, kind)
    assert scheduler.method_name == method
    assert (scheduler.config.interpolant, scheduler.config.prediction) == ("gvp", "noise")
    if kind is SDEScheduler:
        assert (scheduler.config.last_step, scheduler.config.diffusion) == ("tweedie", "sbdm")
    if sampler == "adaptive_heun":
        assert scheduler.config.rtol == 1e-4


def noise_of(seed: int, indices: Sequence[int], images: int = 1) -> torch.Tensor:
    """The next noise of each generator, N × images × 4."""
    generators = image_generators(seed, indices)
    return torch.stack([torch.randn(images, 1, 2, 2, generator=g).flatten(1) for g in generators])


def test_seed_and_index_make_the_image() -> None:
    four, two = noise_of(7, range(4), 3), noise_of(7, [2, 0], 3)
    assert torch.equal(four[[2, 0]], two)
    assert len({tuple(image) for image in four.flatten(0, 1).tolist()}) == 12
    assert not torch.equal(noise_of(8, range(4), 3), four)


def test_the_noise_of_a_seed_stays_what_it_is() -> None:
    expected = [
        [0.09192746132612228, 2.5141780376434326, 0.24273931980133057, 0.6803271770477295],
        [0.5212705731391907, -0.1415501981973648, -1.5617178678512573, -1.3557438850402832],
    ]
    assert noise_of(4, [0, 3])[:, 0].tolist() == expected


# What a perfect model of normal data makes of that noise.
SAMPLES = {
    "heun": [0.5283332, 1.274902, 0.5748153, 0.7096854, 0.6606622, 0.4563724, 0.0186587, 0.08214252],
    "sde_heun": [0.6403849, 0.8398669, 0.5069814, 0.4976137, 0.5659975, 0.6435906, 0.2152626, 0.4870139],
    "sde_euler": [0.5570954, 0.7218059, 0.3400018, 0.6371049, 0.5029511, 0.7822048, 0.4003432, 0.5442087],
}


@pytest.mark.parametrize("sampler", SAMPLES)
def test_the_images_of_a_seed_stay_what_they_are(sampler: str) -> None:
    generators = image_generators(4, [0, 3])
    start = torch.stack([torch.randn(1, 2, 2, generator=generator) for generator in generators])
    scheduler = SamplerConfig(sampler=sampler).scheduler()
    scheduler.set_timesteps(5)
    samples = scheduler.solve(Field(Gaussian(Linear()), Linear()), start, generators)
    assert samples.flatten().tolist() == pytest.approx(SAMPLES[sampler], rel=1e-5)


# Classes.


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("all", NAMES, list(range(10))),
        ("0-9", NAMES, list(range(10))),
        ("3,7", NAMES, [3, 7]),
        ("0-2, 7 ,cat", [*NAMES, "cat"], [0, 1, 2, 7, 10]),
        ("t-shirt,1", ["t-shirt", "shoe"], [0, 1]),
        ("1,0,1", ["a", "b"], [1, 0, 1]),
        ("1-2", ["a", "1-2"], [1]),
    ],
)
def test_classes_are_numbers_ranges_and_names(text: str, names: list[str], expected: list[int]) -> None:
    assert parse_classes(text, names) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "class 10 was asked for: the model has 10, 0 to 9"),
        ("8-12", "class 10 was asked for"),
        ("cat", "no class 'cat'"),
        ("-3", "no class '-3'"),
        ("3-", "no class '3-'"),
        ("", "no class was asked for"),
        ("5-3", "no class was asked for"),
    ],
)
def test_classes_that_are_not_there_are_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_classes(text, NAMES)


def test_numbers_are_names_where_names_are_numbers() -> None:
    names = ["1", "10", "2"]  # folders in their order
    assert parse_classes("1-2", names) == parse_classes("1,2", names) == [0, 2]
    with pytest.raises(ValueError, match="class 3 was asked for: the model has 3, 1 to 10"):
        parse_classes("2-10", names)


@settings(deadline=None)
@given(text=st.text("0123456789-, abc", max_size=12))
def test_whatever_is_asked_for_gives_classes_or_one_clear_error(text: str) -> None:
    message = ""
    try:
        classes = parse_classes(text, NAMES)
    except ValueError as error:
        classes, message = [], str(error)
    assert all(0 <= label < 10 for label in classes)
    assert bool(classes) != ("no class" in message or "was asked for" in message)


# The command.

OPTIONS = ["--per-class=2", "--steps=2", "--device=cpu"]


def test_samples_are_written_as_npz_grid_and_folder(tmp_path: Path) -> None:
    run, common = generation_run(), ["--classes=3,7", "--guidance=2", "--seed=4", *OPTIONS]
    for name in ("out.npz", "grid.png", "images"):
        generate_here("sample", run, f"--out={tmp_path / name}", *common)
    samples = read_samples(tmp_path / "out.npz")
    assert samples.labels == [3, 3, 7, 7]
    pipeline = SiTPipeline.from_pretrained(run)
    output = pipeline(
        [3, 7],
        num_images_per_prompt=2,
        guidance_scale=2.0,
        num_inference_steps=2,
        generator=image_generators(4, range(4)),
        output_type="np",
    )
    expected = (output.images * 255).round().astype(np.uint8)
    assert np.array_equal(samples.images, np.repeat(expected, 3, axis=3))
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["0003-000000.png", "0003-000001.png", "0007-000002.png", "0007-000003.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / names[2])), expected[2, ..., 0])
    assert min(Image.open(tmp_path / "grid.png").size) > 100


def test_a_model_without_classes_makes_per_class_images(tmp_path: Path) -> None:
    generate_here("sample", unconditional_run(), f"--out={tmp_path / 'out.npz'}", *OPTIONS)
    samples = read_samples(tmp_path / "out.npz")
    assert (len(samples), samples.labels) == (2, None)


def test_a_model_without_classes_is_not_asked_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate_here("sample", unconditional_run(), *OPTIONS, "--classes=3")
    assert "has no classes: leave --classes out" in capsys.readouterr().err


def test_parent_folders_are_made_before_sampling(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "grid.png"
    generate_here("sample", generation_run(), *OPTIONS, "--classes=1", f"--out={target}")
    assert target.is_file()


def test_images_of_another_size_are_sampled(tmp_path: Path) -> None:
    generate_here(
        "sample", generation_run(), f"--out={tmp_path / 'out.npz'}", "--classes=1", "--height=12", *OPTIONS
    )
    assert read_samples(tmp_path / "out.npz").images.shape == (2, 12, 8, 3)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (generation_run, ["--classes=12"], "class 12 was asked for: the model has 10"),
        (generation_run, ["--width=7"], "sizes that 2 divides (patches of 2), got 7"),
        (generation_run, ["--sampler=ddim"], "no sampler 'ddim'"),
        (generation_run, ["--per-class=0"], "per_class must be at least 1, got 0"),
        (unconditional_run, ["--guidance=2"], "set guidance to 1"),
        (trained_run, [], "is a classification run, not a generation run: use atconv"),
        (lambda: Path("/nowhere/run"), [], "no such run folder: /nowhere/run"),
    ],
)
def test_what_cannot_be_sampled_is_rejected_in_one_line(
    run: Any, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        generate_here("sample", folder, f"--out={tmp_path / 'out.npz'}", "--device=cpu", *options)
    message_line = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message_line.count("\n") == 1
    assert message in message_line
    assert not (tmp_path / "out.npz").exists()


def test_a_folder_that_holds_files_is_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(SystemExit):
        generate_here("sample", generation_run(), f"--out={tmp_path}", *OPTIONS)
    assert "holds files already" in capsys.readouterr().err


# Grids.


def test_long_names_and_titles_of_a_grid_are_not_cut(tmp_path: Path) -> None:
    names = ["a class whose name is long", "another one"]
    title = "a run with a long name: sde_euler, 251 evaluations, guidance 1.5, and so on and so on"
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    plot_grid(images, 2, names, title, tmp_path / "long.png")
    plot_grid(images, 2, ["a", "b"], "short", tmp_path / "short.png")
    long, short = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("long", "short")
    )
    for pixels in (long, short):
        edge = np.concatenate(
            [pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()]
        )
        assert edge.min() == 255  # nothing is drawn over the edge
    assert (long == 0).sum() >= (short == 0).sum() > 90 * 90  # the images keep their size
    assert long.shape[1] > short.shape[1] + 100


@pytest.mark.parametrize("shape", [(4, 64), (8, 8), (64, 4), (300, 200)])
def test_rows_of_a_grid_are_as_high_as_their_names(shape: tuple[int, int]) -> None:
    width, height = grid_pixels(5, 3, *shape)
    assert height / 5 >= 15
    assert width / 3 >= 50
    assert (height / 5) / (width / 3) == pytest.approx(shape[0] / shape[1])


def test_a_grid_that_is_too_large_is_rejected_before_sampling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "atconv.tasks.generation.predictor.sample_images", lambda *_: pytest.fail("it sampled")
    )
    with pytest.raises(SystemExit):
        generate_here("sample", generation_run(), "--per-class=2000", f"--out={tmp_path / 'grid.png'}")
    assert "too large for a grid: sample fewer, or name an .npz file" in capsys.readouterr().err
