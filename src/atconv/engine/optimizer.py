"""A recipe's optimizer, its schedule, and the moving average of the weights."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from atconv.engine.config import TrainConfig

__all__ = ["make_ema", "make_optimizer", "make_scheduler"]

logger = logging.getLogger(__name__)


def make_optimizer(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer with its weight decay and layer decay.

    timm exempts tensors of one dimension from weight decay, and the names that the model's
    `no_weight_decay` gives, or where it has none, those of its parts: the backbone of a detector.
    """
    info = get_optimizer_info(config.optimizer)
    adam: dict[str, Any] = {"betas": config.betas} if info.has_betas and info.num_betas == 2 else {}
    adam |= {"eps": config.eps} if info.has_eps else {}
    # One kernel a weight: four times as fast on a CPU. Not behind a loss scaler, which leaves out steps, nor
    # for sharded weights.
    fused = info.opt_class in (torch.optim.Adam, torch.optim.AdamW)
    adam |= {"fused": True} if fused and config.precision != "fp16" and not config.shard else {}
    # Models that name their exemptions themselves, and those without decay, are timm's to group.
    by_timm = hasattr(model, "no_weight_decay") or not (config.weight_decay or config.layer_decay)
    return create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        param_group_fn=None if by_timm else partial(_param_groups, config=config),
        **adam,
    )


def _param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """timm's groups of a model's parameters, with `no_weight_decay` of its parts, by their names in the
    model."""
    decay = config.weight_decay
    exempt = {
        f"{name}.{pattern}"
        for name, part in model.named_modules()
        if name and callable(getattr(part, "no_weight_decay", None))
        for pattern in part.no_weight_decay()
    }
    if config.layer_decay is None:
        return param_groups_weight_decay(model, decay, no_weight_decay_list=exempt)
    return param_groups_layer_decay(model, decay, no_weight_decay_list=exempt, layer_decay=config.layer_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> Scheduler:
    """The learning rate by step."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=config.epochs,
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # fractions work: it counts updates
        warmup_lr=config.warmup_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert scheduler is not None
    return scheduler


def make_ema(model: nn.Module, config: TrainConfig, steps: int) -> ModelEmaV3 | None:
    """The moving average of the weights, if there is one. Says where so many steps are too few for it."""
    if not config.ema_decay:
        return None
    untrained = 0.0 if config.ema_warmup else config.ema_decay**steps
    if untrained > 0.01:
        logger.warning(
            "after all %d steps the moving average is still %.0f %% untrained weights: leave ema_warmup on, "
            "lower ema_decay, or train longer",
            steps,
            100 * untrained,
        )
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
