"""The options of every training run, whatever its task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_type_hints

from timm.optim import get_optimizer_info
from typing_extensions import Self

from atconv.engine.options import (
    BelowOne,
    EndRate,
    LearningRate,
    NonNegative,
    Positive,
    PositiveInt,
    PositiveShare,
    Seed,
    Workers,
    as_list,
    check_options,
    check_value,
)

__all__ = ["TrainConfig"]


@dataclass(kw_only=True)
class TrainConfig:
    """Options of the training loop."""

    group: ClassVar[str] = "training"
    common: ClassVar[tuple[str, ...]] = (
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "precision",
        "compile",
        "patience",
        "workers",
        "device",
        "seed",
    )
    """options that --help explains; --help-all explains the others"""

    epochs: PositiveInt = 30
    """passes over the training data"""
    batch_size: PositiveInt = 64
    """images in one micro-batch of one process"""
    auto_find_batch_size: bool = False
    """before training, halve batch_size until it fits memory; the global batch stays"""
    global_batch_size: PositiveInt | None = None
    """images in one optimizer step over all processes and micro-batches; default: base_batch_size"""
    lr: LearningRate = 1e-3
    """peak learning rate, for a global batch of base_batch_size"""
    find_lr: bool = False
    """before training, find lr by a range test of 100 steps on a copy of the model"""
    base_batch_size: PositiveInt = 64
    """global batch size that lr was chosen for; another one scales the learning rate linearly"""
    min_lr: EndRate = 1e-6
    """learning rate at the end of the schedule"""
    warmup_epochs: NonNegative = 1.0
    """epochs of linear warm-up, inside epochs"""
    warmup_lr: EndRate = 1e-6
    """learning rate at the start of warm-up"""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """after warm-up: cosine, constant, or constant with decay over the last fifth (wsd)"""
    optimizer: str = "adamw"
    """optimizer by timm's name"""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """running-average coefficients, for optimizers that take them"""
    eps: NonNegative = 1e-8
    """denominator epsilon of the optimizer"""
    weight_decay: NonNegative = 0.05
    """decay of weight matrices; biases, norms, scales and alpha are exempt"""
    layer_decay: PositiveShare | None = None
    """factor on the learning rate from each layer to the one before it, for fine-tuning"""
    clip_grad: Positive | None = None
    """gradient clipping; off by default"""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """clip by global norm, by value, or adaptively (AGC, 0.01 is usual)"""
    ema_decay: BelowOne = 0.999
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
    sampler: Literal["shuffle", "balanced", "repeat_factor"] = "shuffle"
    """which images an epoch shows: each once; each class equally often; or those of rare classes more often,
    by the root of their rarity (LVIS)"""
    repeat_threshold: PositiveShare | None = None
    """share of images below which repeat_factor repeats a class; default: 1 / number of classes"""
    patience: PositiveInt | None = None
    """stop after this many epochs without a better validation score"""
    checkpoint_steps: PositiveInt | None = None
    """also write a checkpoint every so many optimizer steps inside an epoch"""
    workers: Workers = 2
    """data-loading processes; 0 loads in the training process"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to train; auto takes an accelerator if there is one"""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """where else metrics are sent, besides metrics.csv"""
    seed: Seed = 0
    """seed of everything random"""

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], **changes: Any) -> Self:
        """A recipe with changes. Where defaults and what the recipe sets do not go with these, they give way:
        a smaller lr lowers min_lr, fewer epochs shorten warm-up.

        Raises:
            TypeError, ValueError: an option that there is not, or a value that it does not take.
        """
        hints = get_type_hints(cls, include_extras=True)
        options = {f.name: getattr(cls, f.name) for f in fields(cls) if hasattr(cls, f.name)}
        for name, value in {**options, **recipe, **changes}.items():
            kind = hints.get(name, Any)  # the constructor names what it does not know
            check_value(name, value, kind)
            options[name] = as_list(value, kind)
        cls.give_way(options, changes, recipe)
        return cls(**options)

    @classmethod
    def give_way(cls, options: dict[str, Any], changes: Collection[str], recipe: Mapping[str, Any]) -> None:
        """Fit `options`, in place, to the `changes` among them: what is default or set by the `recipe`."""
        if "warmup_epochs" not in changes and options["warmup_epochs"] > options["epochs"]:
            share = options["warmup_epochs"] / recipe.get("epochs", cls.epochs)  # which warm-up keeps
            options["warmup_epochs"] = round(share * options["epochs"], 3)
        for name in {"min_lr", "warmup_lr"} - set(changes):
            if "lr" in changes or name not in recipe:
                options[name] = min(options[name], options["lr"])

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some parameters get no gradient in some epochs, as torch's DDP must know."""
        return False

    def __post_init__(self) -> None:
        check_options(self)
        try:
            get_optimizer_info(self.optimizer)
        except ValueError:
            raise ValueError(
                f"timm knows no optimizer {self.optimizer!r}; adamw, sgd and lamb are usual"
            ) from None
        if self.shard and not self.ema_decay:
            raise ValueError(
                "shard needs ema_decay: the average is the full model that is evaluated and kept"
            )
        if self.shard and (self.find_lr or self.auto_find_batch_size):
            raise ValueError("find_lr and auto_find_batch_size try a whole model: leave them or shard out")
        if self.min_lr > self.lr and self.schedule != "constant":
            raise ValueError(f"min_lr must be at most lr ({self.lr}), got {self.min_lr}: set it too")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs must lie in 0 … epochs ({self.epochs}), got {self.warmup_epochs}: set it too"
            )
