"""Train a classifier: data, model and objective put into the shared loop, then the test and the pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from atconv.data.loaders import EpochBatches, eval_loader, stream_loader, train_loader
from atconv.data.sources import KeptPictures, Stream
from atconv.data.splits import Split, Splits, is_stream, open_split
from atconv.engine.progress import make_table
from atconv.engine.run import EvalTransform, Run, load, next_run_dir
from atconv.engine.session import is_new, resume_run, start_run
from atconv.engine.trainer import Task, Trainer
from atconv.io import save_tensors, write_atomically
from atconv.tasks.classification import plots as figures
from atconv.tasks.classification.augmentation import train_transform
from atconv.tasks.classification.config import ClassificationConfig, read_config
from atconv.tasks.classification.evaluation import (
    Evaluation,
    evaluate_side,
    evaluate_stream,
    summary_table,
    write_report,
)
from atconv.tasks.classification.model import inherit_config, make_model
from atconv.tasks.classification.objective import Objective

__all__ = ["resume", "train"]


def train(
    config: ClassificationConfig,
    run: str | Path | None = None,
    console: Console | None = None,
    chosen: Collection[str] = (),
) -> Path:
    """Train a classifier from a configuration.

    Args:
        config: what to train on what, how.
        run: folder of the run; default: runs/DATA-MODEL, numbered where it exists.
        console: where progress shows; default: the terminal, and the run's log.txt.
        chosen: options that a run named as `weights` must not change; see `inherit_config`.

    Returns:
        the run's folder.

    Raises:
        ValueError: an option, the data or the weights do not fit; nothing was trained.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    config = inherit_config(config, chosen)
    path = Path(run) if run is not None else next_run_dir(config.data, config.model)
    return start_run(config, path, _make_task, console)


def resume(run: str | Path, console: Console | None = None) -> Path:
    """Continue a run from its newest checkpoint, as it was configured. A finished run is left as it is.

    Raises:
        FileNotFoundError, ValueError: no such run, or its data or checkpoint is damaged or changed.
    """
    opened = Run.open(run)
    return resume_run(read_config(opened), opened, _make_task, console)


class ClassificationTask(Task):
    """What the loop needs to know to train a classifier."""

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        classes: list[str],
        model: nn.Module,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.classes, self.model = classes, model
        self.transform = EvalTransform(_data_config(config))
        self.train_transform = train_transform(config)
        self.objective: Objective
        self.pairs = config.mixes

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = (part.to(self.accelerator.device, non_blocking=True) for part in batch)
        return self.objective(model, images, labels, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_loss, val_top1 and val_top5 (of more than five classes), over all processes."""
        was_training = model.training
        model.eval()
        device = self.accelerator.device
        sums = torch.zeros(4, device=device)  # loss, top-1 hits, top-5 hits, images
        for images, labels in self.validation_batches():
            images, labels = images.to(device), labels.to(device)
            with self.accelerator.autocast():
                logits = model(images)
            logits = logits.float()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack(
                [loss, hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=device)]
            )
        model.train(was_training)
        loss_sum, top1, top5, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count == 0:
            raise ValueError("the validation side has no images")
        metrics = {"val_loss": loss_sum / count, "val_top1": 100 * top1 / count}
        return metrics | ({"val_top5": 100 * top5 / count} if len(self.classes) > 5 else {})

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["val_top1"]

    @abstractmethod
    def validation_batches(self) -> Iterator[Any]:
        """This process's share of the validation images."""

    @abstractmethod
    def judge(
        self, model: nn.Module, transform: EvalTransform, console: Console
    ) -> tuple[str, Evaluation, Split | KeptPictures]:
        """Figures of the finished model on the test side, or on validation where there is none.

        Returns:
            the side's name, the figures, and where its pictures are read from.
        """

    def report(self, trainer: Trainer, console: Console) -> None:
        """After the last epoch: look at the test set once, draw the pictures, print the table."""
        best = trainer.history[trainer.kept_epoch]
        figures.learning_curves(trainer.history, best, self.run.path / "curves.png")
        rows = [
            ("best epoch", f"{best['epoch']} of {len(trainer.history)}"),
            ("validation top-1", f"{best['val_top1']:.2f} %"),
            ("parameters", f"{sum(p.numel() for p in self.model.parameters()):,}"),
            ("training time", f"{sum(row['seconds'] for row in trainer.history):.0f} s"),
        ]
        console.print(make_table(str(self.run.path), ("figure", "value"), rows))
        model, transform, classes = load(self.run.path)
        name, result, shown = self.judge(model, transform, console)
        note = "" if name == "test" else " (no test side: these images picked the best epoch)"
        console.print(summary_table(result, f"{name} side{note}"))
        about = {"side": name, "best_epoch": best["epoch"]}
        write_report(result, shown, transform.prepare.mode, classes, self.run.path, about)
        pictures = ", ".join(sorted(p.name for p in self.run.path.glob("*.png")))
        console.print(
            f"everything is in {self.run.path}: model.safetensors, metrics.csv, {pictures}", soft_wrap=True
        )

    def save_best(self, model: nn.Module, epoch: int) -> None:
        save_tensors(model.state_dict(), self.run.weights)

    def save_model_config(self) -> None:
        """config.json for timm: architecture, arguments, input, label names."""
        data = _data_config(self.config)
        write_atomically(
            self.run.model_config,
            lambda temporary: save_config_for_hf(
                self.model, str(temporary), model_config={"label_names": self.classes}, data_config=data
            ),
        )


class SplitTask(ClassificationTask):
    """Classification on pictures by index."""

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        splits: Splits,
        model: nn.Module,
    ) -> None:
        super().__init__(config, run, accelerator, splits.classes, model)
        self.train_side, self.val_side, self.test = splits.train, splits.val, splits.test
        self.samples = len(splits.train)
        labels = splits.train.labels if config.class_weights != "none" else None
        self.objective = Objective(config, len(splits.classes), labels).to(accelerator.device)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        config, rank = self.config, self.accelerator.process_index
        batches = EpochBatches(self.samples, self.plan, config.seed, epoch, rank, config.repeats, start)
        pin = self.accelerator.device.type == "cuda"
        side, transform = self.train_side, self.train_transform
        return iter(train_loader(side, transform, config.in_chans, batches, config.workers, pin))

    def validation_batches(self) -> Iterator[Any]:
        side, accelerator = self.val_side, self.accelerator
        mine = Split(side.source, side.indices[accelerator.process_index :: accelerator.num_processes])
        loader = eval_loader(
            mine, self.transform, self.config.in_chans, self._eval_batch, self.config.workers
        )
        return iter(loader)

    def judge(
        self, model: nn.Module, transform: EvalTransform, console: Console
    ) -> tuple[str, Evaluation, Split | KeptPictures]:
        name, side = ("val", self.val_side) if self.test is None else ("test", self.test)
        device, workers = self.accelerator.device, self.config.workers
        result = evaluate_side(
            model, transform, side, len(self.classes), self._eval_batch, workers, device, console
        )
        return name, result, side

    @property
    def _eval_batch(self) -> int:
        return max(self.plan.micro_batch, 32)


class StreamTask(ClassificationTask):
    """Classification on a stream. One process; resume restarts the epoch it was in."""

    streams = True

    def __init__(
        self,
        config: ClassificationConfig,
        run: Run,
        accelerator: Accelerator,
        train: Stream,
        val: Stream,
        model: nn.Module,
    ) -> None:
        super().__init__(config, run, accelerator, train.classes, model)
        self.train_stream, self.val_stream = train, val
        self.samples = train.samples
        self.objective = Objective(config, len(train.classes), None).to(accelerator.device)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """As many passes as an epoch has; the stream starts over where it is shorter."""
        needed = self.plan.steps_per_epoch * self.plan.accumulate - start
        set_epoch = getattr(self.train_stream.dataset, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        while needed > 0:
            before = needed
            for batch in stream_loader(
                self.train_stream,
                self.train_transform,
                self.config.in_chans,
                self.plan.micro_batch,
                self.config.workers,
                True,
            ):
                yield batch
                needed -= 1
                if needed == 0:
                    return
            if needed == before:
                raise ValueError(
                    f"{self.config.data} gives fewer images than a batch of {self.plan.micro_batch}"
                )

    def validation_batches(self) -> Iterator[Any]:
        config = self.config
        return iter(
            stream_loader(
                self.val_stream, self.transform, config.in_chans, self.plan.micro_batch, config.workers, False
            )
        )

    def judge(
        self, model: nn.Module, transform: EvalTransform, console: Console
    ) -> tuple[str, Evaluation, Split | KeptPictures]:
        device, batch = self.accelerator.device, self.plan.micro_batch
        classes = len(self.classes)
        return "val", *evaluate_stream(model, transform, self.val_stream, classes, batch, device, console)


def _make_task(
    config: ClassificationConfig, run: Run, accelerator: Accelerator, console: Console
) -> ClassificationTask:
    if is_stream(config.data):
        return _make_stream_task(config, run, accelerator, console)
    splits = open_split(config, config.seed, run, accelerator, console)
    model = make_model(config, len(splits.classes), console, fresh=is_new(run))
    return SplitTask(config, run, accelerator, splits, model)


def _make_stream_task(
    config: ClassificationConfig, run: Run, accelerator: Accelerator, console: Console
) -> StreamTask:
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{config.data} is a stream: it trains in one process; use folders, LMDB or hfds/ for more"
        )
    if config.test_split is not None or config.checkpoint_steps is not None:
        raise ValueError(
            f"{config.data} is a stream: it takes neither test_split nor checkpoint_steps; evaluate its test "
            "images from a folder, an LMDB or hfds/"
        )
    if config.val_split is None:
        raise ValueError(f"{config.data} is a stream: nothing can be held out of it; name its --val_split")
    train, val = (
        Stream(
            config.data, config.data_root, split, training, config.batch_size,
            config.epoch_samples if training else None, config.num_classes, config.seed,
        )
        for split, training in ((config.train_split, True), (config.val_split, False))
    )  # fmt: skip
    return StreamTask(
        config,
        run,
        accelerator,
        train,
        val,
        make_model(config, len(train.classes), console, fresh=is_new(run)),
    )


def _data_config(config: ClassificationConfig) -> dict[str, Any]:
    mean, std = config.normalization()
    return {
        "input_size": (config.in_chans, config.image_size, config.image_size),
        "mean": mean,
        "std": std,
        "crop_pct": config.crop_pct,
        "interpolation": "bilinear" if config.interpolation == "random" else config.interpolation,
    }
