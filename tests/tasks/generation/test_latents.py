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
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from atconv.diffusion.samplers import SamplerConfig
from atconv.diffusion import SiTPipeline
from atconv.tasks.generation.evaluation import evaluate
from atconv.tasks.generation.latents import LatentFolder, Latents, is_latents, latent_splits
from support.helpers import assert_close
from support.tiny import KillAt, image_folder, start_process, trained_run
from support.tiny_sit import atconv_generate, preload, train_tiny_sit
from support.tiny_vae import encode_here, tiny_vae

QUIET = Console(quiet=True)
SCALE, SHIFT = 0.5, 0.25


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("pictures") / "all", {"a": 25, "b": 15}, size=16)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae(shift_factor=SHIFT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(pictures: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents that tests read and never write to."""
    return encode_here(pictures, vae, tmp_path_factory.mktemp("latents") / "latents")


def options(pictures: Path, vae: Path, out: Path) -> list[str | Path]:
    """The same as a command."""
    return ["encode", pictures, f"--vae={vae}", f"--out={out}", "--image_size=16", "--shard_size=8",
            "--batch_size=3", "--device=cpu"]  # fmt: skip


def assert_same(folder: Path, expected: Path) -> None:
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == names
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def train_side(folder: Path) -> Latents:
    return LatentFolder(folder, QUIET).side("train")


# What is written.


def test_every_picture_is_encoded_once_in_shards_of_the_size_asked_for(encoded: Path) -> None:
    assert is_latents(str(encoded))
    folder = LatentFolder(encoded, QUIET)
    assert folder.classes == ["a", "b"]
    assert sum(len(folder.side(name)) for name in folder.shards) == 40
    for name, shards in folder.shards.items():
        side, contents = folder.side(name), [load_file(shard) for shard in shards]
        assert [len(content["labels"]) for content in contents[:-1]] == [8] * (len(shards) - 1)
        assert torch.cat([content["labels"] for content in contents]).tolist() == side.labels
        assert side.labels == latent_splits(encoded).sides[name].labels
        assert all(content["moments"].shape[1:] == (4, 8, 8) for content in contents)
        assert side.shape == (2, 8, 8)


def test_moments_are_those_of_the_vae(encoded: Path, vae: Path) -> None:
    side, model = train_side(encoded), AutoencoderKL.from_pretrained(vae).eval()
    moments = torch.cat([load_file(shard)["moments"] for shard in side.files])
    flipped = torch.cat([load_file(shard)["flipped"] for shard in side.files])
    for position in (0, 9, len(side) - 1):
        picture = side.picture(position, flip=False)
        assert torch.equal(side.picture(position, flip=True), picture.flip(2))
        with torch.no_grad():
            assert_close(moments[position], model.encode(picture[None]).latent_dist.parameters[0], 1e-3)
            mirrored = model.encode(picture.flip(2)[None]).latent_dist.parameters[0]
        assert_close(flipped[position], mirrored, 1e-3)


def samples_of(side: Latents, position: int, flip: bool, count: int = 3000) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.stack([side.draw(position, flip, rng) for _ in range(count)])


@pytest.mark.parametrize("flip", [False, True])
def test_a_latent_is_drawn_anew_from_its_posterior_shifted_and_scaled(encoded: Path, flip: bool) -> None:
    side = train_side(encoded)
    stored = load_file(side.files[1])["flipped" if flip else "moments"][3].float()
    mean, deviation = stored[:2], torch.exp(stored[2:] / 2)
    drawn = samples_of(side, 11, flip)
    standard = ((drawn / SCALE + SHIFT) - mean) / deviation
    assert float(standard.mean(0).abs().max()) < 5 / math.sqrt(3000)
    assert float((standard.std(0) - 1).abs().max()) < 5 / math.sqrt(6000)


def test_the_same_generator_draws_the_same_latent(encoded: Path) -> None:
    side = train_side(encoded)
    one, again = (side.draw(5, False, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again)


# Interrupted.

POINTS = {
    "before a shard": KillAt("atconv.tasks.generation.latents.save_tensors", nth=4),
    "before a shard gets its name": KillAt("os.replace", "train-00001.safetensors"),
    "before its checksum": KillAt("os.replace", "train-00001.json"),
    "before the settings": KillAt("os.replace", "latents.json"),
}


@pytest.mark.parametrize("kill_at", POINTS.values(), ids=POINTS.keys())
def test_an_interrupted_encode_continues_to_the_same_end(
    kill_at: KillAt, pictures: Path, vae: Path, encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    ended = atconv_generate(*options(pictures, vae, out), kill_at=kill_at)
    assert ended.code == -signal.SIGKILL, (ended.code, ended.err)
    encode_here(pictures, vae, out)
    assert not list(out.rglob(".writing*"))
    assert_same(out, encoded)


def test_a_disk_that_fills_stops_encoding_in_one_line(
    small_disk: Callable[[int], Path], pictures: Path, vae: Path, encoded: Path
) -> None:
    size = sum(path.stat().st_size for path in encoded.rglob("*") if path.is_file())
    out = small_disk(size // 2 // 4096 * 4096) / "latents"
    ended = atconv_generate(*options(pictures, vae, out))
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "No space left" in ended.err
    small_disk(16 << 20)
    assert atconv_generate(*options(pictures, vae, out)).code == 0
    assert_same(out, encoded)


def test_a_finished_folder_is_left_as_it_is(pictures: Path, vae: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    shutil.copytree(encoded, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    encode_here(pictures, vae, out)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_same(out, encoded)


def encode_as(rank: int, port: int, pictures: Path, vae: Path, out: Path, told: Path) -> None:
    """One of two processes, as torchrun starts them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    from atconv.tasks.generation import latents

    written: list[str] = []
    original = latents.save_tensors

    def noting(tensors: dict[str, Tensor], path: Path) -> None:
        if path.parent == out:  # not the VAE
            written.append(path.name)
        original(tensors, path)

    latents.save_tensors = noting
    encode_here(pictures, vae, out)
    told.write_text(json.dumps(written))


def test_two_processes_share_the_shards(pictures: Path, vae: Path, encoded: Path, tmp_path: Path) -> None:
    preload()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "latents"
    processes = [
        start_process(encode_as, rank, port, pictures, vae, out, tmp_path / f"{rank}.json")
        for rank in range(2)
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
        LatentFolder(copied, QUIET)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": "0"}'])
def test_a_damaged_checksum_is_named(content: str, copied: Path) -> None:
    (copied / "train-00001.json").write_text(content)
    with pytest.raises(ValueError, match=r"train-00001.safetensors is damaged: .* train-00001\.json"):
        LatentFolder(copied, QUIET)


def test_a_damaged_description_is_said(copied: Path) -> None:
    (copied / "latents.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"latents\.json is damaged"):
        LatentFolder(copied, QUIET)


@pytest.mark.parametrize("deleted", [("safetensors", "json"), ("safetensors",), ("json",)])
def test_a_deleted_shard_is_encoded_again(
    deleted: tuple[str, ...], copied: Path, encoded: Path, pictures: Path, vae: Path
) -> None:
    for ending in deleted:
        (copied / f"train-00001.{ending}").unlink()
    encode_here(pictures, vae, copied)
    assert_same(copied, encoded)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(image_size=8), "image_size"),
        (dict(flips=False, seed=1), "flips, seed"),
        (dict(shard_size=9), "shard"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    changes: dict[str, Any], named: str, encoded: Path, pictures: Path, vae: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"holds latents of other settings .{named}.*name another with --out"
    ):
        encode_here(pictures, vae, encoded, **changes)


def test_a_folder_of_something_else_is_refused(pictures: Path, vae: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="exists and holds no latents"):
        encode_here(pictures, vae, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image_size=15), "this VAE takes sides that 2 divides, got image_size 15"),
        (dict(image_size=0), "must be at least 1"),
        (dict(shard_size=0), "must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, pictures: Path, vae: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_here(pictures, vae, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_is_no_vae_is_refused_in_one_line(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot open the VAE .*, by hub name or folder: ") as told:
        encode_here(pictures, tmp_path, tmp_path / "out")
    assert "\n" not in str(told.value)


# Trained on.


def test_a_generator_learns_latents_and_its_pipeline_decodes_them(
    encoded: Path, vae: Path, tmp_path: Path
) -> None:
    run = train_tiny_sit(
        tmp_path / "run", plots=True, data=str(encoded), hflip=0.5, batch_size=8, base_batch_size=8
    )
    assert (run / "samples.png").is_file()
    pipeline = SiTPipeline.from_pretrained(run)
    assert (pipeline.config.latent_scale, pipeline.config.latent_shift) == (SCALE, SHIFT)
    assert pipeline.config.sample_size == [8, 8]
    assert pipeline.class_names == ["a", "b"]
    assert pipeline(["b"], num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    opened = AutoencoderKL.from_pretrained(vae).state_dict()
    assert all(torch.equal(tensor, opened[name]) for name, tensor in pipeline.vae.state_dict().items())


def test_flips_that_were_not_encoded_are_not_trained_on(pictures: Path, vae: Path, tmp_path: Path) -> None:
    folder = encode_here(pictures, vae, tmp_path / "latents", flips=False, shard_size=40)
    with pytest.raises(ValueError, match="hflip needs latents of mirrored pictures"):
        train_tiny_sit(tmp_path / "run", data=str(folder), hflip=0.5)


def test_latents_are_trained_on_and_judged_where_their_pictures_are(
    pictures: Path, vae: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "pictures"
    shutil.copytree(pictures, moved)
    latents = encode_here(moved, vae, tmp_path / "latents")
    moved.rename(tmp_path / "gone")
    run = train_tiny_sit(
        tmp_path / "run", data=str(latents), model_args={"hidden_size": 32, "depth": 2, "num_heads": 2}
    )
    assert SiTPipeline.from_pretrained(run)([0], num_inference_steps=1).images
    with pytest.raises(ValueError, match="pictures"):
        train_side(latents).picture(0, flip=False)
    (tmp_path / "gone").rename(moved)
    options: dict[str, Any] = dict(images=10, copies=True, device="cpu", options=SamplerConfig(steps=1))
    figures = evaluate(run, f"{latents}/", str(trained_run()), console=QUIET, **options)
    assert figures["split"] == "train side"
    assert figures["real_images"] == len(train_side(latents))
    assert figures["copies"]["ratio"] > 0
