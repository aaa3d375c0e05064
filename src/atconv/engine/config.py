"""The options of every training run, whatever its task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from timm.optim import get_optimizer_info

__all__ = ["TrainConfig", "check_shares"]


@dataclass(kw_only=True)
class TrainConfig:
    """Options of the training loop."""

    group: ClassVar[str] = "training"
    common: ClassVar[tuple[str, ...]] = (
        "epochs",
        "batch_size",
        "lr",
        "warmup_epochs",
        "weight_decay",
        "ema_decay",
        "precision",
        "compile",
        "patience",
        "workers",
        "device",
        "seed",
    )
    """options that --help explains; --help-all explains the others"""

    epochs: int = 30
    """passes over the training data"""
    batch_size: int = 64
    """images in one micro-batch of one process"""
    global_batch_size: int | None = None
    """images in one optimizer step over all processes and micro-batches; default: base_batch_size"""
    lr: float = 1e-3
    """peak learning rate, for a global batch of base_batch_size"""
    base_batch_size: int = 64
    """global batch size that lr was chosen for; another one scales the learning rate linearly"""
    min_lr: float = 1e-6
    """learning rate at the end of the schedule"""
    warmup_epochs: float = 1.0
    """epochs of linear warm-up, inside epochs"""
    warmup_lr: float = 1e-6
    """learning rate at the start of warm-up"""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """after warm-up: cosine, constant, or constant with decay over the last fifth (wsd)"""
    optimizer: str = "adamw"
    """optimizer by timm's name"""
    betas: tuple[float, float] = (0.9, 0.999)
    """running-average coefficients, for optimizers that take them"""
    eps: float = 1e-8
    """denominator epsilon of the optimizer"""
    weight_decay: float = 0.05
    """decay of weight matrices; biases, norms, scales and alpha are exempt"""
    layer_decay: float | None = None
    """factor on the learning rate from each layer to the one before it, for fine-tuning"""
    clip_grad: float | None = None
    """gradient clipping; off by default"""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """clip by global norm, by value, or adaptively (AGC, 0.01 is usual)"""
    ema_decay: float = 0.999
    """moving average of the weights, at each step; 0 turns it off"""
    ema_warmup: bool = True
    """let the average start short and grow to ema_decay"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast dtype; a CPU that lacks it takes bf16 or fp32"""
    compile: bool = False
    """compile the model with torch.compile"""
    shard: bool = False
    """split weights, gradients and optimizer state over the processes (FSDP); needs ema_decay"""
    freeze_bn: bool = False
    """keep BatchNorm statistics as they are"""
    patience: int | None = None
    """stop after this many epochs without a better validation score"""
    checkpoint_steps: int | None = None
    """also write a checkpoint every so many optimizer steps inside an epoch"""
    workers: int = 2
    """data-loading processes; 0 loads in the training process"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to train; auto takes an accelerator if there is one"""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """where else metrics are sent, besides metrics.csv"""
    seed: int = 0
    """seed of everything random"""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            if choices and getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "base_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("global_batch_size", "patience", "checkpoint_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, or null for off, got {getattr(self, name)}")
        try:
            get_optimizer_info(self.optimizer)
        except ValueError:
            raise ValueError(
                f"timm knows no optimizer {self.optimizer!r}; adamw, sgd and lamb are usual"
            ) from None
        if self.lr <= 0 or self.lr == math.inf:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.shard and not self.ema_decay:
            raise ValueError(
                "shard needs ema_decay: the average is the full model that is evaluated and kept"
            )
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs must lie in 0 … epochs ({self.epochs}), got {self.warmup_epochs}: set it too"
            )


def check_shares(config: object, *names: str) -> None:
    """Raise ValueError unless each of these fields lies in 0 … 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in 0 … 1, got {getattr(config, name)}")
