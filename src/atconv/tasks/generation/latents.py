"""Latents of a VAE on disk, and the samples that training makes of them.

    OUT/
        latents.json              what was encoded, and how
        split.json                which images are in which split
        vae/                      the VAE, as diffusers reads it
        train-00000.safetensors   moments N 2C h w (mean, log variance), flipped likewise, labels N
        train-00000.json          its checksum; a shard without one is not finished

`encode` writes such a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from atconv.data.config import DataConfig
from atconv.data.folders import SPLITS
from atconv.data.saved_split import read_split
from atconv.data.splits import Splits, load_splits
from atconv.diffusion.pipeline import pixels_per_latent
from atconv.engine.options import PositiveInt
from atconv.engine.progress import progress
from atconv.engine.reading import read_json
from atconv.io import file_digest, save_tensors
from atconv.tasks.generation.data import SampleDataset, SplitImages

__all__ = [
    "LatentFolder",
    "LatentInfo",
    "Latents",
    "is_latents",
    "latent_shape",
    "latent_splits",
    "open_vae",
    "save_vae",
    "shard_is_complete",
]

_INFO = "latents.json"


@dataclass(frozen=True)
class LatentInfo:
    """What a folder of latents holds: the content of latents.json."""

    data: str
    data_root: str | None
    train_split: str
    val_split: str | None
    vae: str
    image_size: PositiveInt
    shard_size: PositiveInt
    flips: bool
    seed: int

    @classmethod
    def read(cls, folder: Path) -> LatentInfo:
        """Raises ValueError where latents.json is damaged."""
        types = get_type_hints(cls, include_extras=True)
        content = read_json(folder / _INFO, types)
        values: dict[str, Any] = {name: content.get(name) for name in types}
        return cls(**values)

    def data_config(self) -> DataConfig:
        """Options that open the images again."""
        names = ("data", "data_root", "train_split", "val_split")
        return DataConfig(**{name: getattr(self, name) for name in names})

    def shards(self, folder: Path, split: str, count: int) -> list[Path]:
        """Files of a split of so many images."""
        return [folder / f"{split}-{i:05d}.safetensors" for i in range(-(-count // self.shard_size))]


def is_latents(data: str) -> bool:
    """Whether DATA is a folder that `encode` wrote."""
    return (Path(data) / _INFO).is_file()


def latent_splits(folder: str | Path) -> Splits:
    """The images behind a folder of latents, by split. Opens no shard."""
    path = Path(folder)
    return load_splits(LatentInfo.read(path).data_config(), path)


def latent_shape(folder: str | Path) -> tuple[int, int, int]:
    """C H W of the latents in a folder. Opens no shard."""
    path = Path(folder)
    vae = open_vae(str(path / "vae"))
    size = LatentInfo.read(path).image_size // pixels_per_latent(vae)
    return vae.config.latent_channels, size, size


class LatentFolder:
    """A finished folder of latents. The images behind them may be gone.

    Raises:
        ValueError: a shard is missing or damaged; it is named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.info = LatentInfo.read(self.path)
        saved = read_split(self.path / "split.json", "classes", "message")
        self.classes: list[str] = saved["classes"]
        self.message: str = saved["message"]
        self.shards = {
            split: self.info.shards(self.path, split, len(saved[split])) for split in SPLITS if split in saved
        }
        shards = [shard for paths in self.shards.values() for shard in paths]
        for shard in progress(shards, "checking shards"):
            _check(shard)

    @cached_property
    def vae(self) -> Any:
        """The VAE that made them."""
        return open_vae(str(self.path / "vae"))

    def __getitem__(self, split: str) -> Latents:
        """The samples of a split."""
        return Latents(self.path, split, self.shards[split], self.info, self.vae.config)


class Latents(SampleDataset):
    """Latents of one split, sampled from their posterior each time, scaled for the model."""

    def __init__(
        self, folder: Path, split: str, shards: list[Path], info: LatentInfo, vae_config: Any
    ) -> None:
        self.folder, self.split, self.shards, self.info = folder, split, shards, info
        self.scale, self.shift = vae_config.scaling_factor, vae_config.shift_factor or 0.0
        self._open: dict[Path, Any] = {}
        super().__init__(torch.cat([self._slice(i, "labels")[:] for i in range(len(shards))]).numpy())
        _, channels, height, width = self._slice(0, "moments").get_shape()
        self.shape = (channels // 2, height, width)

    @cached_property
    def images(self) -> SplitImages:
        """The images that were encoded, for alignment with an encoder.

        Raises:
            ValueError: they are gone, or others are in their place.
        """
        return SplitImages(latent_splits(self.folder)[self.split], self.info.image_size, 3)

    def load(self, position: int, flip: bool = False, rng: torch.Generator | None = None) -> Tensor:
        shard, row = divmod(position, self.info.shard_size)
        moments: Tensor = self._slice(shard, "flipped" if flip else "moments")[row]
        mean, log_variance = moments.float().chunk(2)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))
        latent = mean + deviation * torch.randn(self.shape, generator=rng)
        return (latent - self.shift) * self.scale

    def _slice(self, shard: int, name: str) -> Any:
        path = self.shards[shard]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path].get_slice(name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files do not travel to workers


def shard_is_complete(shard: Path) -> bool:
    return shard.is_file() and shard.with_suffix(".json").is_file()


def _check(shard: Path) -> None:
    if not shard_is_complete(shard):
        raise ValueError(
            f"latents are incomplete: {shard} is missing; run atconv generate encode again to continue"
        )
    sums = shard.with_suffix(".json")
    try:
        expected = read_json(sums, {"sha256": str})["sha256"]
    except ValueError:
        expected = f"not in {sums.name}"
    if expected != file_digest(shard):
        raise ValueError(
            f"{shard} is damaged: its checksum is not the one in {sums.name}. Delete both, then run "
            "atconv generate encode again"
        )


def save_vae(vae: Any, folder: Path) -> None:
    """Save a VAE as diffusers reads it, its config.json last.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(vae.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    vae.save_config(folder)


def open_vae(name: str) -> Any:
    """An AutoencoderKL of diffusers by hub name or folder. Raises ValueError where there is none."""
    try:
        return AutoencoderKL.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"cannot open the VAE {name!r}, by hub name or folder: {reason}") from error
