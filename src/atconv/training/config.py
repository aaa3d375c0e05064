"""What every training run can be told, whatever its task, and how batches follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from timm.optim import get_optimizer_info

__all__ = ["BatchPlan", "LoopConfig", "plan_batches"]


@dataclass(kw_only=True)
class LoopConfig:
    """Options of the shared training loop."""

    epochs: int = 30
    """passes over the training data"""
    batch_size: int = 64
    """images in one forward pass of one process"""
    total_batch: int | None = None
    """images in one optimizer step over all processes and accumulated passes; default: lr_batch"""
    lr: float = 1e-3
    """peak learning rate, for a total batch of lr_batch"""
    lr_batch: int = 64
    """total batch that lr was chosen for; another total batch scales the learning rate linearly"""
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
    """decay of tensors with two or more dimensions; biases, norms, scales and alpha are exempt"""
    layer_decay: float | None = None
    """factor on the learning rate from each layer to the one before it, for fine-tuning"""
    clip_grad: float | None = None
    """gradient clipping; off by default"""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """clip by global norm, by value, or adaptively (AGC, 0.01 is usual)"""
    ema_decay: float = 0.999
    """exponential moving average of the weights, each step; 0 turns it off"""
    ema_warmup: bool = True
    """let the average start short and grow to ema_decay"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast dtype; on a CPU bf16 takes the place of fp16, and fp32 that of both where it has no bf16"""
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
        for name in ("epochs", "batch_size", "lr_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("total_batch", "patience", "checkpoint_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, or null for off, got {getattr(self, name)}")
        try:
            get_optimizer_info(self.optimizer)
        except ValueError:
            raise ValueError(
                f"timm knows no optimizer {self.optimizer!r}; adamw, sgd and lamb are usual"
            ) from None
        if self.lr <= 0 or self.lr == float("inf"):
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.shard and not self.ema_decay:
            raise ValueError(
                "shard needs ema_decay: the average is the whole model that is evaluated and kept"
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


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is put together, and how many make an epoch."""

    micro_batch: int
    accumulate: int
    processes: int
    steps_per_epoch: int
    lr: float
    message: str

    @property
    def total_batch(self) -> int:
        return self.micro_batch * self.accumulate * self.processes


def plan_batches(config: LoopConfig, samples: int, processes: int, even: bool = False) -> BatchPlan:
    """Derive accumulation and learning rate from the batch a recipe names.

    The total batch is met by accumulating passes of `batch_size`; where it cannot be met exactly, or
    `total_batch` asks for another one, the learning rate scales with it. A training set smaller than
    a batch makes the batch smaller. Incomplete batches at the end of an epoch are dropped.

    Args:
        samples: training samples.
        processes: world size.
        even: every pass needs an even number of images (Mixup).

    Raises:
        ValueError: too few samples for one image (two with `even`) in every process.
    """
    wanted = config.total_batch or config.lr_batch
    smallest = 2 if even else 1
    limit = samples // processes
    if limit < smallest:
        raise ValueError(
            f"{samples} training images are too few for {processes} process(es)"
            + (" with mixup or cutmix, which need pairs; set mixup and cutmix to 0" if even else "")
        )
    # As few passes as batch_size allows, then passes of the size that comes closest to the batch.
    share = min(max(1, wanted // processes), limit)
    accumulate = -(-share // config.batch_size)
    micro = max(1, min(round(share / accumulate), limit // accumulate))
    if even:
        micro = max(2, micro - micro % 2)
        accumulate = min(accumulate, limit // micro)
    total = micro * processes * accumulate
    lr = config.lr * total / config.lr_batch
    message = f"total batch {total} = {micro} images × {processes} process(es) × {accumulate} pass(es)"
    if total == config.lr_batch:
        message += f", learning rate {lr:.3g}"
    else:
        message += f"; the learning rate was given for {config.lr_batch}: {config.lr:.3g} → {lr:.3g}"
    if total != wanted <= samples:
        message += f" ({wanted} asked for)"
    if samples < wanted:
        message += f" (only {samples} training images for a batch of {wanted})"
    return BatchPlan(micro, accumulate, processes, samples // total, lr, message)
