"""How one optimizer step is put together from what a recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass

from atconv.engine.config import TrainConfig

__all__ = ["BatchPlan", "plan_batches"]


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
    def global_batch_size(self) -> int:
        return self.micro_batch * self.accumulate * self.processes


def plan_batches(
    config: TrainConfig, samples: int, processes: int, even: bool = False, min_batch: int = 1
) -> BatchPlan:
    """Derive accumulation and learning rate from the batch a recipe names.

    The global batch is met by accumulating micro-batches of `batch_size`; where it cannot be met exactly, or
    `global_batch_size` asks for another one, the learning rate scales with it. A training set smaller than
    a batch makes the batch smaller. An incomplete batch at the end of an epoch is left out, and counted.

    Args:
        samples: training samples.
        processes: world size.
        even: every micro-batch needs an even number of images (Mixup).
        min_batch: images that every micro-batch needs (batch norm).

    Raises:
        ValueError: too few samples for one such micro-batch in every process.
    """
    wanted = config.global_batch_size or config.base_batch_size
    smallest = max(2, min_batch) if even else min_batch
    limit = samples // processes
    if limit < smallest:
        raise ValueError(
            f"{samples} training images are too few for {processes} process(es)"
            + (" with mixup or cutmix, which need pairs; set mixup and cutmix to 0" if even else "")
            + (f": batch norm needs {min_batch} in a batch" if min_batch > 1 else "")
        )
    # As few micro-batches as batch_size allows, then of the size that comes closest to the global batch.
    share = min(max(1, wanted // processes), limit)
    accumulate = -(-share // max(config.batch_size, smallest))
    micro = max(1, min(round(share / accumulate), limit // accumulate))
    micro = max(smallest, micro - micro % 2 if even else micro)
    accumulate = min(accumulate, limit // micro)
    total = micro * processes * accumulate
    lr = config.lr * total / config.base_batch_size
    message = (
        f"global batch {total} = {micro} images × {processes} process(es) × {accumulate} micro-batch(es)"
    )
    if total == config.base_batch_size:
        message += f", learning rate {lr:.3g}"
    else:
        message += f"; lr is for a batch of {config.base_batch_size}: {config.lr:.3g} → {lr:.3g}"
    if config.batch_size < min_batch:
        message += (
            f" (batch norm needs {min_batch} images in a micro-batch, batch_size is {config.batch_size})"
        )
    if total != wanted <= samples:
        message += f" ({wanted} asked for)"
    if samples < wanted:
        message += f" (only {samples} training images for a batch of {wanted})"
    if left := samples % total:
        message += f"; an epoch leaves out {left} of {samples} images, others each time: they fill no batch"
    return BatchPlan(micro, accumulate, processes, samples // total, lr, message)
