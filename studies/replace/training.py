"""What a run of the study does: data, end-to-end training that can be interrupted, accuracy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from atconv.io import write_atomically

__all__ = ["BATCH", "LR", "TRAINING", "VIT", "Data", "accuracy", "batches", "fit", "load_data", "make_vit"]

VIT: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 2,
    "num_classes": 10,
    "class_token": False,
    "global_pool": "avg",
}
BATCH, LR = 32, 1e-3
HELD_OUT = 5000  # training images that nothing is trained on
TRAINING = 60_000 - HELD_OUT
SAVE_EVERY = 500  # steps


@dataclass(frozen=True)
class Data:
    """Fashion-MNIST on a device: uint8, N 1 28 28, and labels."""

    images: Tensor
    labels: Tensor
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def device(self) -> torch.device:
        return self.images.device


@functools.cache
def load_data(root: str, device: torch.device) -> Data:
    """Training images without those held out, held-out images as `val`, test images."""
    splits = [FashionMNIST(root, train=train) for train in (True, False)]
    train, test = ((split.data[:, None].to(device), split.targets.to(device)) for split in splits)
    images, labels = train
    val = images[-HELD_OUT:], labels[-HELD_OUT:]
    return Data(images[:-HELD_OUT], labels[:-HELD_OUT], val, test)


def make_vit(seed: int, device: torch.device, **options: Any) -> nn.Module:
    """The ViT, newly initialized."""
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **VIT | options).to(device)


def batches(data: Data, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, and mirrored at random. Shifts too would cost this ViT eight points after one epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data.labels), generator=generator)
        index, order = order[:BATCH].to(data.device), order[BATCH:]
        images = scaled(data.images[index])
        mirrored = (torch.rand(BATCH, generator=generator) < 0.5).to(data.device)
        yield torch.where(mirrored[:, None, None, None], images.flip(3), images), data.labels[index]


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def fit(
    model: nn.Module,
    data: Data,
    seed: int,
    steps: int,
    lr: float = LR,
    mixers_lr: float = LR,
    checkpoint: Path | None = None,
) -> None:
    """Train end to end.

    Args:
        model: trained in place.
        data: its training images are used.
        seed: of the batches.
        steps: of the optimizer.
        lr: peak learning rate.
        mixers_lr: that of attention, or of what is in its place.
        checkpoint: file that is written every few steps; a later call continues from it.
    """
    model.train()
    mixers = [parameter for name, parameter in model.named_parameters() if ".attn." in name]
    rest = [parameter for name, parameter in model.named_parameters() if ".attn." not in name]
    optimizer = torch.optim.AdamW([{"params": mixers}, {"params": rest}], lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [mixers_lr, lr], total_steps=steps, pct_start=0.1
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if checkpoint is not None and checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=data.device, weights_only=True)
        done = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    for step, (images, labels) in enumerate(islice(batches(data, seed, steps), done, None), done + 1):
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if checkpoint is not None and step % SAVE_EVERY == 0:
            content = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
            write_atomically(checkpoint, partial(torch.save, content))


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    model.eval()
    pairs = zip(images.split(500), labels.split(500), strict=True)
    correct = sum(int((model(scaled(some)).argmax(1) == wanted).sum()) for some, wanted in pairs)
    return 100 * correct / len(labels)
