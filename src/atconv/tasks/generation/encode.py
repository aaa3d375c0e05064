"""Encode images with a VAE, once: `atconv generate encode`.

A shard is written under another name and renamed, then its checksum: an interrupted `encode` continues with
the shards that lack one. Processes started by torchrun take turns over the shards.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from atconv.data.splits import Split, Splits, load_splits, make_splits
from atconv.diffusion.pipeline import pixels_per_latent
from atconv.engine.devices import resolve_device
from atconv.engine.options import Pixels, PositiveInt, Seed
from atconv.engine.run import is_skipped_list
from atconv.io import file_digest, save_tensors, write_json
from atconv.tasks.generation.data import SplitImages, scale_pixels
from atconv.tasks.generation.latents import LatentInfo, is_latents, open_vae, save_vae, shard_is_complete

__all__ = ["encode"]

logger = logging.getLogger(__name__)


def encode(
    data: str,
    vae: str,
    out: str,
    image_size: Pixels = 256,
    data_root: str | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    flips: bool = True,
    shard_size: PositiveInt = 2048,
    batch_size: PositiveInt = 16,
    seed: Seed = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Encode the images of DATA with a VAE. Interrupted, the same command continues.

    Args:
        data: DATA as in training.
        vae: an AutoencoderKL of diffusers, by hub name or folder, such as stabilityai/sd-vae-ft-ema.
        out: folder to write.
        image_size: height and width of the images: shorter edge resized, center cropped.
        data_root: folder of a named timm dataset.
        train_split: training split of a named timm dataset.
        val_split: its validation split; default: held out from the training split.
        flips: encode the mirrored images too, for training with hflip.
        shard_size: images in a file.
        batch_size: images at a time.
        seed: of the splits, where some are held out.
        device: where the VAE runs; auto takes an accelerator if there is one.

    Returns:
        the folder, which `atconv generate train` takes as DATA.

    Raises:
        ValueError: no such data or VAE, or the folder holds something else.
    """
    if min(image_size, shard_size, batch_size) < 1:
        raise ValueError("image_size, shard_size and batch_size must be at least 1")
    run_device = resolve_device(device)
    state = PartialState(cpu=run_device.type == "cpu")
    root = data_root and _absolute(data_root)
    info = LatentInfo(_absolute(data), root, train_split, val_split, vae, image_size, shard_size, flips, seed)
    folder, model = Path(out), open_vae(vae)
    if image_size % pixels_per_latent(model):
        raise ValueError(
            f"this VAE takes image sizes that {pixels_per_latent(model)} divides, got image_size {image_size}"
        )
    made = _begin(folder, info, model) if state.is_main_process else None
    state.wait_for_everyone()
    splits = made or load_splits(info.data_config(), folder)
    _encode_shards(folder, info, splits, model.to(run_device), batch_size, state)
    state.wait_for_everyone()
    if state.is_main_process:
        sizes = {name: len(split) for name, split in splits.by_name.items()}
        logger.info("%d images are in %s: %s", sum(sizes.values()), folder, sizes)
    return folder


def _begin(folder: Path, info: LatentInfo, model: Any) -> Splits | None:
    """Write all but the shards, and return the splits; or check that an earlier call wrote the same."""
    if is_latents(str(folder)):
        earlier = LatentInfo.read(folder)
        differing = [k for k, v in asdict(info).items() if v != getattr(earlier, k)]
        if differing:
            raise ValueError(
                f"{folder} holds latents of other settings ({', '.join(differing)}): name another with --out"
            )
        return None
    begun = {"split.json", "vae"}  # what an interrupted call may have left, besides skipped.csv
    if folder.exists() and any(
        not (child.name in begun or child.name.startswith(".writing-") or is_skipped_list(child))
        for child in folder.iterdir()
    ):
        raise ValueError(f"{folder} exists and holds no latents: name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    splits = make_splits(info.data_config(), folder, info.seed, min_classes=1)
    logger.info(splits.message)
    save_vae(model, folder / "vae")
    write_json(folder / "latents.json", asdict(info))
    return splits


def _encode_shards(
    folder: Path, info: LatentInfo, splits: Splits, model: Any, batch_size: int, state: PartialState
) -> None:
    """Every shard that has no checksum yet and is this process's turn."""
    jobs = [
        (shard, split, range(i * info.shard_size, min((i + 1) * info.shard_size, len(split))))
        for name, split in splits.by_name.items()
        for i, shard in enumerate(info.shards(folder, name, len(split)))
    ]
    own = jobs[state.process_index :: state.num_processes]
    missing = [job for job in own if not shard_is_complete(job[0])]
    if len(missing) < len(own) and state.is_main_process:
        logger.info("continuing: %d of %d shards are done", len(own) - len(missing), len(own))
    total = sum(len(positions) for _, _, positions in missing) * (2 if info.flips else 1)
    quiet = None if state.is_main_process else True
    with tqdm(total=total, desc="encoding images", disable=quiet, leave=False) as bar:
        for shard, split, positions in missing:
            labels = split.labels
            tensors = {"labels": torch.tensor([labels[i] for i in positions])}
            for flip in (False, True) if info.flips else (False,):
                moments = []
                for start in range(0, len(positions), batch_size):
                    batch = positions[start : start + batch_size]
                    moments.append(_moments(model, split, batch, info.image_size, flip))
                    bar.update(len(batch))
                tensors["flipped" if flip else "moments"] = torch.cat(moments)
            save_tensors(tensors, shard)
            described = {"sha256": file_digest(shard), "images": len(positions)}
            write_json(shard.with_suffix(".json"), described)


@torch.inference_mode()
def _moments(model: Any, split: Split, positions: range, size: int, flip: bool) -> Tensor:
    images = SplitImages(split, size, 3)
    batch = torch.stack([scale_pixels(images[i], flip) for i in positions])
    posterior = model.encode(batch.to(model.device, model.dtype)).latent_dist
    return posterior.parameters.half().cpu()


def _absolute(path: str) -> str:
    """A path that stays right when a later command starts elsewhere; other names of data stay as they are."""
    return str(Path(path).resolve()) if Path(path).exists() else path
