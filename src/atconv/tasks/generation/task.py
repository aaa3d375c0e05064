"""What the trainer asks of a generator: batches, loss, validation, files, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from atconv.data.config import DataConfig, log_unused_fractions, reject_options
from atconv.data.imbalance import Occurrences, image_weights, log_classes
from atconv.data.loaders import EpochBatches, EpochLoader, SampleKey
from atconv.data.splits import open_splits
from atconv.diffusion.interpolants import make_interpolant
from atconv.diffusion.pipeline import SiTPipeline
from atconv.engine.batch_plan import BatchPlan
from atconv.engine.checkpoint import latest_checkpoint
from atconv.engine.history import History
from atconv.engine.progress import heartbeat
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run
from atconv.engine.tables import Table
from atconv.engine.task import Task
from atconv.io import save_tensors, write_json
from atconv.models.sit import SiT
from atconv.plots import Panel, plot_curves
from atconv.tasks.common.start import log_other_classes
from atconv.tasks.generation.config import GenerationConfig
from atconv.tasks.generation.data import Example, Pixels, SampleDataset, TrainingExamples
from atconv.tasks.generation.latents import LatentFolder, Latents, is_latents, latent_shape, save_vae
from atconv.tasks.generation.model import build_sit, check_weights, make_model
from atconv.tasks.generation.plots import plot_grid
from atconv.tasks.generation.predictor import GenerationPredictor
from atconv.tasks.generation.repa import AlignedSiT, FrozenEncoder, alignment_loss
from atconv.tasks.generation.sampling import SamplerConfig, sample_images

__all__ = ["GenerationTask", "make_task"]

logger = logging.getLogger(__name__)

_GRID_CLASSES, _GRID_COLUMNS = 10, 10
_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class GenerationTask(Task):
    """Training of a SiT. The last epoch is kept: the loss says little of how samples look."""

    model: nn.Module

    def __init__(
        self,
        config: GenerationConfig,
        run: Run,
        accelerator: Accelerator,
        sit: SiT,
        splits: dict[str, SampleDataset],
        classes: list[str],
        vae: Any = None,
    ) -> None:
        self.config, self.run, self.accelerator, self.sit, self.vae = config, run, accelerator, sit, vae
        self.train, self.val, self.classes = splits["train"], splits["val"], classes
        self.samples = len(self.train)
        occurrences = {n: Occurrences.of_labels(classes, splits[n].labels) for n in ("train", "val")}
        self.weights = image_weights(occurrences["train"], config.sampler, config.repeat_threshold)
        if accelerator.is_main_process and latest_checkpoint(run.checkpoints) is None:
            log_classes(occurrences, "--sampler balanced shows each class equally often")
        self.interpolant = make_interpolant(config.interpolant)
        if config.hflip and isinstance(self.train, Latents) and not self.train.info.flips:
            raise ValueError("hflip needs latents of mirrored images: encode again with --flips")
        self.model = sit
        self.encoder: FrozenEncoder | None = None
        if config.repa_encoder is not None:
            grid_size = self.train.shape[1] // sit.patch_size, self.train.shape[2] // sit.patch_size
            with seeded(derive_seed("projector", config.seed)):
                self.encoder = FrozenEncoder(config.repa_encoder, grid_size, config.repa_weights)
                self.encoder.to(accelerator.device)
                self.model = AlignedSiT(sit, config.repa_block, self.encoder.features)

    @property
    def shards(self) -> Sequence[nn.Module]:
        return list(self.sit.blocks)

    def batches(self, plan: BatchPlan, epoch: int, start: int) -> Iterator[Any]:
        config, rank = self.config, self.accelerator.process_index
        keys = EpochBatches(self.samples, plan, config.seed, epoch, rank, start=start, weights=self.weights)
        return self._loader.batches(keys)

    def loss(self, model: nn.Module, batch: Example, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        errors, tokens = self._errors(model, batch)
        match = errors.mean()
        if self.encoder is None:
            return match, {}
        alignment = alignment_loss(tokens, self.encoder(batch.image))
        return match + self.config.repa_weight * alignment, {"velocity": match, "alignment": alignment}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_loss: the loss on held-out samples, with the same noise and times every epoch."""
        sit, accelerator = _sit_of(model).eval(), self.accelerator
        positions = range(accelerator.process_index, len(self.val), accelerator.num_processes)
        keys = [SampleKey(i, derive_seed("validation", i)) for i in positions]
        size = self.config.batch_size
        batches = [keys[i : i + size] for i in range(0, len(keys), size)]
        sums = torch.zeros(2, device=accelerator.device)
        loader = EpochLoader[Example](self._examples(self.val), 0, accelerator.device)
        for batch in heartbeat(loader.batches(batches), "validating", len(batches)):
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            with accelerator.autocast():
                losses, _ = self._errors(sit, batch)
            sums += torch.stack([losses.sum(), losses.new_tensor(len(losses))])
        total, count = accelerator.reduce(sums, reduction="sum").tolist()
        return {"val_loss": total / count}

    def save_config(self) -> None:
        """model_index.json, scheduler/, transformer/config.json and, for latents, vae/: the run as diffusers
        reads it."""
        pipeline = self._pipeline(self.sit)
        pipeline.save_config(self.run.path)
        pipeline.scheduler.save_config(self.run.path / "scheduler")
        self.sit.save_config(self.run.path / "transformer")
        if self.vae is not None and not (self.run.path / "vae" / "config.json").is_file():
            save_vae(self.vae, self.run.path / "vae")

    def save_model(self, model: nn.Module) -> None:
        save_tensors(_sit_of(model).state_dict(), self.run.path / _WEIGHTS)

    def plot_epoch(self, model: nn.Module, epoch: int) -> None:
        """A grid of samples every so many epochs, and after the last: RUN/samples/epoch-N.png."""
        every = self.config.sample_every
        if not every or (epoch % every and epoch != self.config.epochs):
            return
        folder = self.run.path / "samples"
        folder.mkdir(exist_ok=True)
        self.plot_samples(_sit_of(model), f"epoch {epoch}", folder / f"epoch-{epoch:04d}.png")

    def report(self, history: History) -> None:
        """After the last epoch: learning curves, a grid of samples, metrics.json."""
        panels = [
            Panel("Loss", "mean squared error", {"train": "train_loss", "validation": "val_loss"}),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        plot_curves(history.rows, panels, self.run.path / "curves.png")
        predictor = GenerationPredictor.open(self.run).to(self.accelerator.device)
        self.plot_samples(predictor.pipeline.transformer, "", self.run.path / "samples.png")
        last = history.rows[-1]
        summary = {
            "epochs": last["epoch"],
            "steps": last["step"],
            "val_loss": last["val_loss"],
            "seconds": sum(row["seconds"] for row in history.rows),
            "parameters": sum(p.numel() for p in self.sit.parameters()),
            "macs": self.sit.macs(*self.train.shape[1:]),
        }
        rows = [
            ("parameters", f"{summary['parameters']:,}"),
            ("GMACs an evaluation", f"{summary['macs'] / 1e9:.3g}"),
            ("validation loss", f"{summary['val_loss']:.4f}"),
            ("training time", f"{summary['seconds']:.0f} s"),
        ]
        logger.info(Table(str(self.run.path), ("metric", "value"), rows))
        write_json(self.run.metrics, summary)
        logger.info("everything is in %s: samples.png, curves.png, metrics.csv", self.run.path)

    def plot_samples(self, sit: SiT, when: str, path: Path) -> None:
        """A grid: a row for each of the first classes (or two rows of samples without classes)."""
        pipeline = self._pipeline(sit)
        if self.vae is not None:
            pipeline.vae.to(sit.device)
        names = pipeline.class_names[:_GRID_CLASSES] if sit.num_classes else ["", ""]
        count = len(names) * _GRID_COLUMNS
        labels = [i // _GRID_COLUMNS for i in range(count)] if sit.num_classes else count
        guidance = self.config.sample_guidance if sit.null_label is not None else 1.0
        options = SamplerConfig(steps=25, guidance=guidance)
        images = sample_images(pipeline, labels, options, batch_size=50).images
        title = ", ".join(part for part in (self.config.model, when, f"guidance {guidance:g}") if part)
        plot_grid(images, _GRID_COLUMNS, names, title, path)

    @cached_property
    def _loader(self) -> EpochLoader[Example]:
        config = self.config
        examples = self._examples(self.train, config.label_dropout, config.hflip)
        return EpochLoader(examples, config.workers, self.accelerator.device)

    def _examples(
        self, samples: SampleDataset, label_dropout: float = 0.0, hflip: float = 0.0
    ) -> TrainingExamples:
        return TrainingExamples(
            samples,
            self.interpolant,
            self.interpolant.interval(self.config.prediction, sampling=False),
            self.config.time_sampling,
            hflip,
            label_dropout,
            self.sit.null_label,
            images=self.encoder is not None,
        )

    def _errors(self, model: nn.Module, batch: Example) -> tuple[Tensor, Any]:
        """Mean squared error of each sample, B; and the projected tokens of a model that has them."""
        x, velocity = self.interpolant.interpolate(batch.data, batch.noise, batch.t)
        predicted = model(x, batch.t, batch.label if self.sit.num_classes else None)
        predicted, tokens = predicted if isinstance(predicted, tuple) else (predicted, None)
        if self.config.prediction == "velocity":
            error = predicted.float() - velocity
        elif self.config.prediction == "noise":
            error = predicted.float() - batch.noise
        else:  # σ·score against −noise: bounded where the score itself is not
            sigma = self.interpolant.sigma(batch.t)[:, None, None, None]
            error = sigma * predicted.float() + batch.noise
        return (error**2).flatten(1).mean(1), tokens

    def _pipeline(self, sit: SiT) -> SiTPipeline:
        return SiTPipeline(
            sit,
            vae=self.vae,
            interpolant=self.config.interpolant,
            prediction=self.config.prediction,
            sample_size=list(self.train.shape[1:]),
            class_names=self.classes if sit.num_classes else None,
        )


def make_task(config: GenerationConfig, run: Run, accelerator: Accelerator) -> GenerationTask:
    """Data and model of a configuration, put together.

    Raises:
        ValueError: data, model or weights do not fit.
    """
    new = latest_checkpoint(run.checkpoints) is None  # else weights come from there
    latents = is_latents(config.data)
    size = config.image_size
    _check_model(config, latent_shape(config.data) if latents else (config.in_chans, size, size), new)
    splits: dict[str, SampleDataset]
    vae = None
    if latents:
        reason = f"DATA {config.data} is latents, which were split when they were encoded"
        fractions = {"val_fraction", "test_fraction"}
        reject_options(config, {field.name for field in fields(DataConfig)} - fractions - {"data"}, reason)
        log_unused_fractions(config, fractions, reason)
        folder = LatentFolder(config.data)
        splits, classes, vae = {name: folder[name] for name in ("train", "val")}, folder.classes, folder.vae
        logger.info("latents %s of %s", " × ".join(map(str, splits["train"].shape)), folder.message)
    else:
        opened = open_splits(config, config.seed, run, accelerator, min_classes=1)
        splits = {name: Pixels(opened[name], size, config.in_chans) for name in ("train", "val")}
        classes = opened.classes
    shape = splits["train"].shape
    sit = make_model(config, len(classes) if config.conditional else 0, shape, load_weights=new)
    if new and config.conditional:
        log_other_classes(config, classes, "the label embedding")
    return GenerationTask(config, run, accelerator, sit, splits, classes, vae)


def _check_model(config: GenerationConfig, shape: tuple[int, int, int], new: bool) -> None:
    """Raise ValueError for what is wrong with the model, its weights or its encoder, before data is read."""
    with torch.device("meta"):
        sit = build_sit(config, 1, shape)
        if config.repa_encoder is not None:
            grid_size = shape[1] // sit.patch_size, shape[2] // sit.patch_size
            encoder = FrozenEncoder(config.repa_encoder, grid_size, config.repa_weights)
            AlignedSiT(sit, config.repa_block, encoder.features)
    if config.checkpoint is not None and new:
        check_weights(Path(config.checkpoint))


def _sit_of(model: nn.Module) -> SiT:
    """The SiT, without the projector that REPA trains with it."""
    sit = model.sit if isinstance(model, AlignedSiT) else model
    assert isinstance(sit, SiT)
    return sit
