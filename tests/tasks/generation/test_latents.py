"""Latents: interrupted, shared, damaged, sampled, trained on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from atconv.diffusion import SiTPipeline
from atconv.tasks.generation.commands import evaluate_samples
from atconv.tasks.generation.latents import LatentFolder, Latents, is_latents, latent_splits
from atconv.tasks.generation.sampling import SamplerConfig
from support.helpers import assert_close
from support.tiny import KillAt, image_folder, start_process, trained_run
from support.tiny_sit import atconv_generate, train_tiny_sit
from support.tiny_vae import encode_here, tiny_vae

SCALE, SHIFT = 0.5, 0.25


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "all", {"a": 25, "b": 15}, size=16)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae(shift_factor=SHIFT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(images: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents that tests read and never write to."""
    return encode_here(images, vae, tmp_path_factory.mktemp("latents") / "latents")


def options(images: Path, vae: Path, out: Path) -> list[str | Path]:
    """The same as a command."""
    return ["encode", images, f"--vae={vae}", f"--out={out}", "--image-size=16", "--shard-size=8",
            "--batch-size=3", "--device=cpu"]  # fmt: skip


def assert_same(folder: Path, expected: Path) -> None:
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == names
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def train_split(folder: Path) -> Latents:
    return LatentFolder(folder)["train"]


# What is written.


def test_every_image_is_encoded_once_in_shards_of_the_size_asked_for(encoded: Path) -> None:
    assert is_latents(str(encoded))
    folder = LatentFolder(encoded)
    assert folder.classes == ["a", "b"]
    assert sum(len(folder[name]) for name in folder.shards) == 40
    for name, shards in folder.shards.items():
        split, contents = folder[name], [load_file(shard) for shard in shards]
        assert [len(content["labels"]) for content in contents[:-1]] == [8] * (len(shards) - 1)
        assert torch.cat([content["labels"] for content in contents]).tolist() == split.labels.tolist()
        assert split.labels.tolist() == latent_splits(encoded)[name].labels
        assert all(content["moments"].shape[1:] == (4, 8, 8) for content in contents)
        assert split.shape == (2, 8, 8)


def test_moments_are_those_of_the_vae(encoded: Path, vae: Path) -> None:
    split, model = train_split(encoded), AutoencoderKL.from_pretrained(vae).eval()
    moments = torch.cat([load_file(shard)["moments"] for shard in split.shards])
    flipped = torch.cat([load_file(shard)["flipped"] for shard in split.shards])
    for position in (0, 9, len(split) - 1):
        image = split.image(position, flip=False)
        assert torch.equal(split.image(position, flip=True), image.flip(2))
        with torch.no_grad():
            assert_close(moments[position], model.encode(image[None]).latent_dist.parameters[0], 1e-3)
            mirrored = model.encode(image.flip(2)[None]).latent_dist.parameters[0]
        assert_close(flipped[position], mirrored, 1e-3)


def samples_of(split: Latents, position: int, flip: bool, count: int = 3000) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.stack([split.load(position, flip, rng) for _ in range(count)])


@pytest.mark.parametrize("flip", [False, True])
def test_a_latent_is_sampled_from_its_posterior_shifted_and_scaled(encoded: Path, flip: bool) -> None:
    split = train_split(encoded)
    stored = load_file(split.shards[1])["flipped" if flip else "moments"][3].float()
    mean, deviation = stored[:2], torch.exp(stored[2:] / 2)
    samples = samples_of(split, 11, flip)
    standard = ((samples / SCALE + SHIFT) - mean) / deviation
    assert float(standard.mean(0).abs().max()) < 5 / math.sqrt(3000)
    assert float((standard.std(0) - 1).abs().max()) < 5 / math.sqrt(6000)


def test_the_same_generator_samples_the_same_latent(encoded: Path) -> None:
    split = train_split(encoded)
    one, again = (split.load(5, False, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again)


# Interrupted.

POINTS = {
    "before a shard": KillAt("atconv.tasks.generation.encode.save_tensors", nth=4),
    "before a shard gets its name": KillAt("os.replace", "train-00001.safetensors"),
    "before its checksum": KillAt("os.replace", "train-00001.json"),
    "before the settings": KillAt("os.replace", "latents.json"),
}


@pytest.mark.parametrize("kill_at", POINTS.values(), ids=POINTS.keys())
def test_an_interrupted_encode_continues_to_the_same_end(
    kill_at: KillAt, images: Path, vae: Path, encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    ended = atconv_generate(*options(images, vae, out), kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, (ended.code, ended.err)
    encode_here(images, vae, out)
    assert not list(out.rglob(".writing*"))
    assert_same(out, encoded)


def test_a_disk_that_fills_stops_encoding_in_one_line(
    small_disk: Callable[[int], Path], images: Path, vae: Path, encoded: Path
) -> None:
    size = sum(path.stat().st_size for path in encoded.rglob("*") if path.is_file())
    out = small_disk(size // 2 // 4096 * 4096) / "latents"
    ended = atconv_generate(*options(images, vae, out))
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "No space left" in ended.err
    small_disk(16 << 20)
    assert atconv_generate(*options(images, vae, out)).code == 0
    assert_same(out, encoded)


def test_a_finished_folder_is_left_as_it_is(images: Path, vae: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    shutil.copytree(encoded, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    encode_here(images, vae, out)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_same(out, encoded)


def encode_as(rank: int, port: int, images: Path, vae: Path, out: Path, report: Path) -> None:
    """One of two processes, as torchrun starts them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    from atconv.tasks.generation import encode

    written: list[str] = []
    original = encode.save_tensors

    def noting(tensors: dict[str, Tensor], path: Path) -> None:
        if path.parent == out:  # not the VAE
            written.append(path.name)
        original(tensors, path)

    encode.save_tensors = noting
    encode_here(images, vae, out)
    report.write_text(json.dumps(written))


def test_two_processes_share_the_shards(images: Path, vae: Path, encoded: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "latents"
    processes = [
        start_process(encode_as, rank, port, images, vae, out, tmp_path / f"{rank}.json") for rank in range(2)
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert_same(out, encoded)
    shares = [set(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(2)]
    assert not shares[0] & shares[1]
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert shares[0] | shares[1] == {path.name for path in encoded.glob("*.safetensors")}


# Damaged, or of something else.


@pytest.fixture
def copied(encoded: Path, tmp_path: Path) -> Path:
    shutil.copytree(encoded, tmp_path / "copied")
    return tmp_path / "copied"


def test_a_damaged_shard_is_named_and_not_trained_on(copied: Path, tmp_path: Path) -> None:
    shard = copied / "train-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00002.safetensors is damaged: .* encode again"):
        train_tiny_sit(tmp_path / "run", data=str(copied))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["train-00001.safetensors", "train-00001.json"])
def test_an_unfinished_folder_is_not_trained_on(missing: str, copied: Path) -> None:
    (copied / missing).unlink()
    with pytest.raises(ValueError, match=r"incomplete: .*train-00001.safetensors is missing"):
        LatentFolder(copied)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": "0"}'])
def test_a_damaged_checksum_is_named(content: str, copied: Path) -> None:
    (copied / "train-00001.json").write_text(content)
    with pytest.raises(ValueError, match=r"train-00001.safetensors is damaged: .* train-00001\.json"):
        LatentFolder(copied)


def test_a_damaged_description_is_reported(copied: Path) -> None:
    (copied / "latents.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"latents\.json is damaged"):
        LatentFolder(copied)


@pytest.mark.parametrize("deleted", [("safetensors", "json"), ("safetensors",), ("json",)])
def test_a_deleted_shard_is_encoded_again(
    deleted: tuple[str, ...], copied: Path, encoded: Path, images: Path, vae: Path
) -> None:
    for ending in deleted:
        (copied / f"train-00001.{ending}").unlink()
    encode_here(images, vae, copied)
    assert_same(copied, encoded)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(image_size=8), "image_size"),
        (dict(flips=False, seed=1), "flips, seed"),
        (dict(shard_size=9), "shard"),
    ],
)
def test_a_folder_of_other_settings_is_rejected(
    changes: dict[str, Any], named: str, encoded: Path, images: Path, vae: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"holds latents of other settings .{named}.*name another with --out"
    ):
        encode_here(images, vae, encoded, **changes)


@pytest.mark.parametrize("name", ["mine.txt", "skipped.csv"])
def test_a_folder_of_something_else_is_rejected(name: str, images: Path, vae: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("dear diary")
    with pytest.raises(ValueError, match="exists and holds no latents"):
        encode_here(images, vae, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["dear diary"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_size=15), "this VAE takes image sizes that 2 divides, got image_size 15"),
        (dict(image_size=0), "must be at least 1"),
        (dict(shard_size=0), "must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(
    changes: dict[str, Any], message: str, images: Path, vae: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_here(images, vae, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_is_no_vae_is_rejected_in_one_line(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot open the VAE .*, by hub name or folder: ") as error:
        encode_here(images, tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)


# Trained on.


@pytest.mark.plots
def test_a_generator_learns_latents_and_its_pipeline_decodes_them(
    encoded: Path, vae: Path, tmp_path: Path
) -> None:
    run = train_tiny_sit(tmp_path / "run", data=str(encoded), hflip=0.5, batch_size=8, base_batch_size=8)
    assert (run / "samples.png").is_file()
    pipeline = SiTPipeline.from_pretrained(run)
    assert (pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor) == (SCALE, SHIFT)
    assert pipeline.config.sample_size == [8, 8]
    assert pipeline.class_names == ["a", "b"]
    assert pipeline(["b"], num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    opened = AutoencoderKL.from_pretrained(vae).state_dict()
    assert all(torch.equal(tensor, opened[name]) for name, tensor in pipeline.vae.state_dict().items())


def test_a_wrong_model_is_named_before_shards_are_read(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "atconv.tasks.generation.task.LatentFolder", lambda _: pytest.fail("it read the shards")
    )
    with pytest.raises(ValueError, match="patches of 3 do not divide samples of 8 × 8"):
        train_tiny_sit(tmp_path / "run", data=str(encoded), model_args={"patch_size": 3})


def test_flips_that_were_not_encoded_are_not_trained_on(images: Path, vae: Path, tmp_path: Path) -> None:
    folder = encode_here(images, vae, tmp_path / "latents", flips=False, shard_size=40)
    with pytest.raises(ValueError, match="hflip needs latents of mirrored images"):
        train_tiny_sit(tmp_path / "run", data=str(folder), hflip=0.5)


def test_latents_are_trained_on_and_evaluated_where_their_images_are(
    images: Path, vae: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "images"
    shutil.copytree(images, moved)
    latents = encode_here(moved, vae, tmp_path / "latents")
    moved.rename(tmp_path / "gone")
    run = train_tiny_sit(
        tmp_path / "run", data=str(latents), model_args={"hidden_size": 32, "depth": 2, "num_heads": 2}
    )
    assert SiTPipeline.from_pretrained(run)([0], num_inference_steps=1).images
    with pytest.raises(ValueError, match="images"):
        train_split(latents).image(0, flip=False)
    (tmp_path / "gone").rename(moved)
    options: dict[str, Any] = dict(images=10, memorization=True, device="cpu", options=SamplerConfig(steps=1))
    metrics = evaluate_samples(run, f"{latents}/", features=str(trained_run()), **options)
    assert metrics.split == "train"
    assert metrics.real_images == len(train_split(latents))
    assert metrics.memorization is not None
    assert metrics.memorization.ratio > 0
