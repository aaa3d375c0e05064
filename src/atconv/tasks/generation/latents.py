"""Latents of a VAE, computed once and kept: sharded safetensors with checksums.

    OUT/
        latents.json              what was encoded, and how
        split.json                which pictures are on which side
        vae/                      the VAE, as diffusers reads it
        train-00000.safetensors   moments N 2C h w (mean, log variance), flipped likewise, labels N
        train-00000.json          its checksum; a shard without one is not finished

A shard is written under another name and renamed, then its checksum: an interrupted `encode` goes on with the
shards that lack one. Processes started by torchrun take turns over the shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from atconv.data.config import DataConfig
from atconv.data.splits import SPLITS, Split, Splits, load_split, make_split
from atconv.diffusion.pipeline import pixels_per_latent
from atconv.engine.progress import plain_console, track
from atconv.engine.run import resolve_device
from atconv.io import file_digest, save_tensors, write_json
from atconv.tasks.generation.data import Examples, fit_picture

__all__ = ["LatentFolder", "Latents", "encode", "is_latents", "latent_splits", "save_vae"]

_ABOUT = "latents.json"


@dataclass(frozen=True)
class _About:
    """What a folder of latents holds: the content of latents.json."""

    data: str
    data_root: str | None
    train_split: str
    val_split: str | None
    vae: str
    image_size: int
    shard_size: int
    flips: bool
    seed: int


def encode(
    data: str,
    vae: str,
    out: str,
    image_size: int = 256,
    data_root: str | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    flips: bool = True,
    shard_size: int = 2048,
    batch_size: int = 16,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    console: Console | None = None,
) -> Path:
    """Encode the pictures of DATA with a VAE. Interrupted, the same command continues.

    Args:
        data: DATA as in training.
        vae: an AutoencoderKL of diffusers, by hub name or folder, such as stabilityai/sd-vae-ft-ema.
        out: folder to write.
        image_size: side of the square pictures: shorter side resized, center cropped.
        data_root: folder of a named timm dataset.
        train_split: training split of a named timm dataset.
        val_split: its validation split; default: held out from the training split.
        flips: keep the mirrored pictures too, for training with hflip.
        shard_size: pictures in a file.
        batch_size: pictures at a time.
        seed: of the split, where sides are held out.
        device: where the VAE runs; auto takes an accelerator if there is one.
        console: where progress shows.

    Returns:
        the folder, which `atconv generate train` takes as DATA.

    Raises:
        ValueError: no such data or VAE, or the folder holds something else.
    """
    if min(image_size, shard_size, batch_size) < 1:
        raise ValueError("image_size, shard_size and batch_size must be at least 1")
    where = resolve_device(device)
    state = PartialState(cpu=where.type == "cpu")
    console = (console or plain_console()) if state.is_main_process else Console(quiet=True)
    about = _About(
        _lasting(data),
        data_root and _lasting(data_root),
        train_split,
        val_split,
        vae,
        image_size,
        shard_size,
        flips,
        seed,
    )
    folder, model = Path(out), _open_vae(vae)
    if image_size % pixels_per_latent(model):
        raise ValueError(
            f"this VAE takes sides that {pixels_per_latent(model)} divides, got image_size {image_size}"
        )
    if state.is_main_process:
        _begin(folder, about, model, console)
    state.wait_for_everyone()
    splits = load_split(_data_config(about), folder)
    _encode_shards(folder, about, splits, model.to(where), batch_size, state, console)
    state.wait_for_everyone()
    if state.is_main_process:
        sides = {name: len(side) for name, side in splits.sides.items()}
        console.print(f"{sum(sides.values())} pictures are in {folder}: {sides}", soft_wrap=True)
    return folder


def is_latents(data: str) -> bool:
    """Whether DATA is a folder that `encode` wrote."""
    return (Path(data) / _ABOUT).is_file()


def latent_splits(folder: str | Path) -> Splits:
    """The pictures behind a folder of latents, by side. Opens no shard."""
    path = Path(folder)
    return load_split(_data_config(_read_about(path)), path)


class LatentFolder:
    """A finished folder of latents. The pictures behind them may be gone.

    Raises:
        ValueError: a shard is missing or damaged; it is named.
    """

    def __init__(self, folder: str | Path, console: Console) -> None:
        self.path = Path(folder)
        self.about = _read_about(self.path)
        try:
            saved = json.loads((self.path / "split.json").read_text())
            self.classes: list[str] = saved["classes"]
            self.message: str = saved["message"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'split.json'} is missing or damaged: {error}") from error
        self.shards = {side: list(self._shards(side, len(saved[side]))) for side in SPLITS if side in saved}
        every = [shard for shards in self.shards.values() for shard in shards]
        for shard in track(every, console, "checking shards", len(every)):
            _check(shard)

    @cached_property
    def vae(self) -> Any:
        """The VAE that made them."""
        return _open_vae(str(self.path / "vae"))

    def side(self, name: str) -> Latents:
        """The samples of a side."""
        return Latents(self.path, name, self.shards[name], self.about, self.vae.config)

    def _shards(self, side: str, count: int) -> Iterator[Path]:
        for number in range(-(-count // self.about.shard_size)):
            yield _shard(self.path, side, number)


class Latents(Examples):
    """Latents of one side, sampled anew from their posterior each time, scaled for the model."""

    def __init__(self, folder: Path, side: str, shards: list[Path], about: _About, vae_config: Any) -> None:
        self.folder, self.side, self.files, self.about = folder, side, shards, about
        self.scale, self.shift = vae_config.scaling_factor, getattr(vae_config, "shift_factor", None) or 0.0
        self._open: dict[Path, Any] = {}
        self.labels = torch.cat([self._slice(i, "labels")[:] for i in range(len(shards))]).tolist()
        _, channels, height, width = self._slice(0, "moments").get_shape()
        self.shape = (channels // 2, height, width)

    @cached_property
    def pictures(self) -> Split:
        """The pictures that were encoded, for alignment with an encoder.

        Raises:
            ValueError: they are gone, or others are in their place.
        """
        return latent_splits(self.folder).sides[self.side]

    def draw(self, position: int, flip: bool, rng: torch.Generator) -> Tensor:
        shard, row = divmod(position, self.about.shard_size)
        moments: Tensor = self._slice(shard, "flipped" if flip else "moments")[row]
        mean, log_variance = moments.float().chunk(2)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        latent = mean + deviation * torch.randn(self.shape, generator=rng)
        return (latent - self.shift) * self.scale

    def picture(self, position: int, flip: bool) -> Tensor:
        return _scaled(self.pictures, position, self.about.image_size, flip)

    def check_flips(self) -> None:
        """Raise ValueError where the mirrored pictures were not encoded."""
        if not self.about.flips:
            raise ValueError("hflip needs latents of mirrored pictures: encode again with --flips true")

    def _slice(self, shard: int, name: str) -> Any:
        path = self.files[shard]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path].get_slice(name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files do not travel to workers


def _begin(folder: Path, about: _About, model: Any, console: Console) -> None:
    """Write all but the shards, or check that an earlier call wrote the same."""
    if (folder / _ABOUT).is_file():
        earlier = _read_about(folder)
        differing = [k for k, v in asdict(about).items() if v != getattr(earlier, k)]
        if differing:
            raise ValueError(
                f"{folder} holds latents of other settings ({', '.join(differing)}): name another with --out"
            )
        return
    begun = {"split.json", "skipped.csv", "vae"}  # what an interrupted call may have left
    if folder.exists() and any(
        child.name not in begun and not child.name.startswith(".writing-") for child in folder.iterdir()
    ):
        raise ValueError(f"{folder} exists and holds no latents: name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    splits = make_split(_data_config(about), console, folder, about.seed, least_classes=1)
    console.print(splits.message, soft_wrap=True)
    save_vae(model, folder / "vae")
    write_json(folder / _ABOUT, asdict(about))


def _encode_shards(
    folder: Path,
    about: _About,
    splits: Splits,
    model: Any,
    batch_size: int,
    state: PartialState,
    console: Console,
) -> None:
    """Every shard that has no checksum yet and is this process's turn."""
    tasks = [
        (name, side, number)
        for name, side in splits.sides.items()
        for number in range(-(-len(side) // about.shard_size))
    ]
    mine = [task for i, task in enumerate(tasks) if i % state.num_processes == state.process_index]
    left = [task for task in mine if not _is_complete(_shard(folder, task[0], task[2]))]
    if len(left) < len(mine):
        console.print(f"continuing: {len(mine) - len(left)} of {len(mine)} shards are done")
    sizes = [len(_positions(side, number, about)) for _, side, number in left]
    batches = sum(-(-size // batch_size) for size in sizes) * (2 if about.flips else 1)
    with closing(track(range(batches), console, "encoding batches", batches)) as ticks:
        for name, side, number in left:
            positions = _positions(side, number, about)
            tensors = {"labels": torch.tensor([side.labels[i] for i in positions])}
            for flip in (False, True) if about.flips else (False,):
                parts = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
                moments = [
                    _moments(model, side, part, about.image_size, flip)
                    for part, _ in zip(parts, ticks, strict=False)
                ]
                tensors["flipped" if flip else "moments"] = torch.cat(moments)
            shard = _shard(folder, name, number)
            save_tensors(tensors, shard)
            described = {"sha256": file_digest(shard), "pictures": len(positions)}
            write_json(shard.with_suffix(".json"), described)


def _positions(side: Split, number: int, about: _About) -> range:
    """Places in their side of the pictures of a shard."""
    first = number * about.shard_size
    return range(first, min(first + about.shard_size, len(side)))


@torch.inference_mode()
def _moments(model: Any, side: Split, positions: range, size: int, flip: bool) -> Tensor:
    pictures = torch.stack([_scaled(side, i, size, flip) for i in positions])
    posterior = model.encode(pictures.to(model.device, model.dtype)).latent_dist
    return posterior.parameters.half().cpu()


def _scaled(side: Split, position: int, size: int, flip: bool) -> Tensor:
    """A picture as C H W in [−1, 1]."""
    pixels = torch.from_numpy(fit_picture(side.read(position, "RGB"), size)).permute(2, 0, 1)
    scaled = pixels.float() / 127.5 - 1
    return scaled.flip(2) if flip else scaled


def _is_complete(shard: Path) -> bool:
    return shard.is_file() and shard.with_suffix(".json").is_file()


def _check(shard: Path) -> None:
    if not _is_complete(shard):
        raise ValueError(
            f"latents are incomplete: {shard} is missing; run atconv generate encode again to go on"
        )
    sums = shard.with_suffix(".json")
    try:
        expected = json.loads(sums.read_text())["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        expected = f"not in {sums.name}"
    if expected != file_digest(shard):
        raise ValueError(
            f"{shard} is damaged: its checksum is not the one in {sums.name}. Delete both, then run "
            "atconv generate encode again"
        )


def _lasting(path: str) -> str:
    """A path that stays right when a later command starts elsewhere; other names of data stay as they are."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def save_vae(vae: Any, folder: Path) -> None:
    """Save a VAE as diffusers reads it, its config.json last.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(vae.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    vae.save_config(folder)


def _open_vae(name: str) -> Any:
    try:
        return AutoencoderKL.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot open the VAE {name!r}, by hub name or folder: {reason}") from error


def _read_about(folder: Path) -> _About:
    try:
        return _About(**json.loads((folder / _ABOUT).read_text()))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / _ABOUT} is damaged: {error}") from error


def _data_config(about: _About) -> DataConfig:
    return DataConfig(
        data=about.data, data_root=about.data_root, train_split=about.train_split, val_split=about.val_split
    )


def _shard(folder: Path, side: str, number: int) -> Path:
    return folder / f"{side}-{number:05d}.safetensors"
