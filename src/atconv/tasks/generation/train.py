"""Train a generator: samples, SiT and interpolant put into the shared loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from atconv.data.loaders import EpochBatches, SampleKey
from atconv.data.splits import Split, is_stream, open_split
from atconv.diffusion.interpolants import make_interpolant
from atconv.diffusion.pipeline import SiTPipeline
from atconv.engine.curves import Panel, draw_curves
from atconv.engine.progress import make_table
from atconv.engine.recipes import refuse_contradictions
from atconv.engine.rng import derive_seed, seeded
from atconv.engine.run import Run, next_run_dir
from atconv.engine.session import is_new, resume_run, start_run
from atconv.engine.trainer import Task, Trainer
from atconv.io import save_tensors, write_json
from atconv.models.release import load_release
from atconv.models.sit import SiT, create_sit
from atconv.tasks.generation.config import GenerationConfig, SamplerConfig, read_config
from atconv.tasks.generation.data import Example, Examples, Pixels, TrainingExamples, examples_loader
from atconv.tasks.generation.latents import LatentFolder, Latents, is_latents, save_vae
from atconv.tasks.generation.plots import draw_grid
from atconv.tasks.generation.repa import AlignedSiT, FrozenEncoder, alignment_loss
from atconv.tasks.generation.samples import open_pipeline, sample_images

__all__ = ["resume", "train"]

_GRID_CLASSES, _GRID_COLUMNS = 10, 10
_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def train(
    config: GenerationConfig,
    run: str | Path | None = None,
    console: Console | None = None,
    chosen: Collection[str] = (),
) -> Path:
    """Train a generator from a configuration.

    Args:
        config: what to train on what, how.
        run: folder of the run; default: runs/DATA-MODEL, numbered where it exists.
        console: where progress shows; default: the terminal, and the run's log.txt.
        chosen: options that a run named as `weights` must not change: its model and interpolant come with it.

    Returns:
        the run's folder, which `SiTPipeline.from_pretrained` opens.

    Raises:
        ValueError: an option, the data or the weights do not fit; nothing was trained.
        FloatingPointError: the loss is not finite; checkpoints so far are kept.
        OSError: a disk is full or read-only; the last complete checkpoint is kept.
    """
    path = Path(run) if run is not None else next_run_dir(config.data, config.model)
    return start_run(inherit_config(config, chosen), path, _make_task, console)


def resume(run: str | Path, console: Console | None = None) -> Path:
    """Continue a run from its newest checkpoint, as it was configured. A finished run is left as it is.

    Raises:
        FileNotFoundError, ValueError: no such run, or its data or checkpoint is damaged or changed.
    """
    opened = Run.open(run)
    return resume_run(read_config(opened), opened, _make_task, console)


class GenerationTask(Task):
    """What the loop needs to know to train a SiT."""

    model: nn.Module

    def __init__(
        self,
        config: GenerationConfig,
        run: Run,
        accelerator: Accelerator,
        sit: SiT,
        train: Examples,
        val: Examples,
        classes: list[str],
        vae: Any = None,
    ) -> None:
        self.config, self.run, self.accelerator, self.sit, self.vae = config, run, accelerator, sit, vae
        self.train, self.val, self.classes = train, val, classes
        self.samples = len(train)
        self.interpolant = make_interpolant(config.interpolant)
        if config.hflip and isinstance(train, Latents):
            train.check_flips()
        self.model = sit
        self.encoder: FrozenEncoder | None = None
        if config.repa_encoder is not None:
            grid = train.shape[1] // sit.patch_size, train.shape[2] // sit.patch_size
            with seeded(derive_seed("projector", config.seed)):
                self.encoder = FrozenEncoder(config.repa_encoder, grid, config.repa_weights)
                self.encoder.to(accelerator.device)
                self.model = AlignedSiT(sit, config.repa_block, self.encoder.features)

    @property
    def parts(self) -> Sequence[nn.Module]:
        return list(self.sit.blocks)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        config, rank = self.config, self.accelerator.process_index
        keys = EpochBatches(self.samples, self.plan, config.seed, epoch, rank, start=start)
        examples = self._examples(self.train, config.label_dropout, config.hflip)
        return iter(examples_loader(examples, keys, config.workers, self._pins))

    def loss(self, model: nn.Module, batch: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        example = Example(*(part.to(self.accelerator.device, non_blocking=True) for part in batch))
        x, velocity = self.interpolant.interpolate(example.data, example.noise, example.t)
        predicted = model(x, example.t, example.label if self.sit.num_classes else None)
        if self.encoder is None:
            return self._per_sample(predicted, example, velocity).mean(), {}
        predicted, tokens = predicted
        match = self._per_sample(predicted, example, velocity).mean()
        alignment = alignment_loss(tokens, self.encoder(example.picture))
        return match + self.config.repa_weight * alignment, {"velocity": match, "alignment": alignment}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """val_loss: the loss on held-out samples, with the same noise and times every epoch."""
        sit = _sit_of(model).eval()
        device, rank, world = (
            self.accelerator.device,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        keys = [SampleKey(i, derive_seed("validation", i)) for i in range(rank, len(self.val), world)]
        size = self.plan.micro_batch
        batches = [keys[i : i + size] for i in range(0, len(keys), size)]
        sums = torch.zeros(2, device=device)
        for batch in examples_loader(self._examples(self.val), batches, 0, self._pins):
            example = Example(*(part.to(device) for part in batch))
            x, velocity = self.interpolant.interpolate(example.data, example.noise, example.t)
            with self.accelerator.autocast():
                predicted = sit(x, example.t, example.label if sit.num_classes else None)
            losses = self._per_sample(predicted, example, velocity)
            sums += torch.stack([losses.sum(), torch.tensor(float(len(losses)), device=device)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return {"val_loss": total / count}

    def score(self, metrics: dict[str, float]) -> None:
        """The last epoch is kept: the loss says little of how samples look."""

    def save_best(self, model: nn.Module, epoch: int) -> None:
        sit = _sit_of(model)
        save_tensors(sit.state_dict(), self.run.path / _WEIGHTS)
        every = self.config.sample_every
        if every and (epoch % every == 0 or epoch == self.config.epochs):
            folder = self.run.path / "samples"
            folder.mkdir(exist_ok=True)
            self._draw_samples(sit, f"epoch {epoch}", folder / f"epoch-{epoch:04d}.png")

    def save_model_config(self) -> None:
        """model_index.json, transformer/config.json and, for latents, vae/: the run as diffusers reads it."""
        pipeline = self._pipeline(self.sit)
        pipeline.save_config(self.run.path)
        pipeline.scheduler.save_config(self.run.path / "scheduler")
        self.sit.save_config(self.run.path / "transformer")
        if self.vae is not None and not (self.run.path / "vae" / "config.json").is_file():
            save_vae(self.vae, self.run.path / "vae")

    def report(self, trainer: Trainer, console: Console) -> None:
        """After the last epoch: learning curves, a grid of samples, metrics.json."""
        columns = {"train": "train_loss", "held out": "val_loss"}
        panels = [
            Panel("Loss", "mean squared error", columns),
            Panel("Learning rate", "at the end of the epoch", {"learning rate": "lr"}),
        ]
        draw_curves(trainer.history, panels, self.run.path / "curves.png")
        kept = open_pipeline(self.run.path, self.accelerator.device).transformer
        self._draw_samples(kept, "", self.run.path / "samples.png")
        last = trainer.history[-1]
        parameters = sum(p.numel() for p in self.sit.parameters())
        macs = self.sit.macs(*self.train.shape[1:])
        seconds = sum(row["seconds"] for row in trainer.history)
        rows = [
            ("parameters", f"{parameters:,}"),
            ("multiply-adds an evaluation", f"{macs / 1e9:.3g} G"),
            ("held-out loss", f"{last['val_loss']:.4f}"),
            ("training time", f"{seconds:.0f} s"),
        ]
        console.print(make_table(str(self.run.path), ("figure", "value"), rows))
        summary = {
            "epochs": last["epoch"],
            "steps": last["step"],
            "val_loss": last["val_loss"],
            "seconds": seconds,
            "parameters": parameters,
            "macs": macs,
        }
        write_json(self.run.path / "metrics.json", summary)
        console.print(
            f"everything is in {self.run.path}: samples.png, curves.png, metrics.csv", soft_wrap=True
        )

    @property
    def _pins(self) -> bool:
        return self.accelerator.device.type == "cuda"

    def _examples(
        self, examples: Examples, label_dropout: float = 0.0, hflip: float = 0.0
    ) -> TrainingExamples:
        interval = self.interpolant.interval(self.config.prediction, sampling=False)
        null = self.sit.null_label
        return TrainingExamples(
            examples,
            self.interpolant,
            interval,
            self.config.time_sampling,
            hflip,
            label_dropout,
            null,
            pictures=self.encoder is not None,
        )

    def _per_sample(self, predicted: Tensor, example: Example, velocity: Tensor) -> Tensor:
        """Mean squared error of each sample, B."""
        if self.config.prediction == "velocity":
            error = predicted.float() - velocity
        elif self.config.prediction == "noise":
            error = predicted.float() - example.noise
        else:  # σ·score against −noise: bounded where the score itself is not
            error = self.interpolant.sigma(example.t)[:, None, None, None] * predicted.float() + example.noise
        return (error**2).flatten(1).mean(1)

    def _pipeline(self, sit: SiT) -> SiTPipeline:
        return SiTPipeline(
            sit,
            vae=self.vae,
            interpolant=self.config.interpolant,
            prediction=self.config.prediction,
            sample_size=list(self.train.shape[1:]),
            class_names=self.classes if sit.num_classes else None,
        )

    def _draw_samples(self, sit: SiT, when: str, path: Path) -> None:
        """A grid: a row for each of the first classes (or rows of samples without one)."""
        pipeline = self._pipeline(sit)
        if self.vae is not None:
            pipeline.vae.to(sit.device)
        names = pipeline.class_names[:_GRID_CLASSES] if sit.num_classes else ["", ""]
        labels = [i for i in range(len(names)) for _ in range(_GRID_COLUMNS)]
        guidance = self.config.sample_guidance if sit.null_label is not None else 1.0
        options = SamplerConfig(steps=25, guidance=guidance)
        known = labels if sit.num_classes else None
        images = sample_images(pipeline, known, len(labels), options, batch_size=50).images
        rows = [images[i : i + _GRID_COLUMNS] for i in range(0, len(images), _GRID_COLUMNS)]
        title = ", ".join(part for part in (self.config.model, when, f"guidance {guidance:g}") if part)
        draw_grid(rows, names, title, path)


def _make_task(
    config: GenerationConfig, run: Run, accelerator: Accelerator, console: Console
) -> GenerationTask:
    vae = None
    train: Examples
    val: Examples
    if is_latents(config.data):
        folder = LatentFolder(config.data, console)
        train, val, classes, vae = folder.side("train"), folder.side("val"), folder.classes, folder.vae
        console.print(f"latents {' × '.join(map(str, train.shape))} of {folder.message}", soft_wrap=True)
    else:
        with torch.device("meta"):  # what is wrong with the model is said before the data is read
            sit = _build_sit(config, 1, (config.in_chans, config.image_size, config.image_size))
            if config.repa_encoder is not None:
                AlignedSiT(sit, config.repa_block, 1)
        train, val, classes = _open_pictures(config, run, accelerator, console)
    sit = make_model(config, len(classes) if config.conditional else 0, train.shape, console, is_new(run))
    return GenerationTask(config, run, accelerator, sit, train, val, classes, vae)


def _open_pictures(
    config: GenerationConfig, run: Run, accelerator: Accelerator, console: Console
) -> tuple[Examples, Examples, list[str]]:
    if is_stream(config.data):
        raise ValueError(
            f"{config.data} is a stream: generation takes folders, LMDB, torch/…, hfds/… or digits"
        )
    splits = open_split(config, config.seed, run, accelerator, console, least_classes=1)

    def pixels(side: Split) -> Pixels:
        return Pixels(side, config.image_size, config.in_chans, console)

    return pixels(splits.train), pixels(splits.val), splits.classes


def make_model(
    config: GenerationConfig, classes: int, shape: tuple[int, int, int], console: Console, fresh: bool = True
) -> SiT:
    """The SiT of a configuration, seeded; with its starting weights where it is `fresh`.

    Raises:
        ValueError: unknown model or arguments, a size the patch does not divide, or weights that do not fit.
    """
    with seeded(derive_seed("init", config.seed)):
        sit = _build_sit(config, classes, shape)
    if config.weights is not None and fresh:
        _load_weights(sit, Path(config.weights), console)
    if config.grad_checkpointing:
        sit.enable_gradient_checkpointing()
    return sit


def _build_sit(config: GenerationConfig, classes: int, shape: tuple[int, int, int]) -> SiT:
    arguments = {
        "learn_sigma": False,
        **config.model_args,
        "in_channels": shape[0],
        "num_classes": classes,
        "label_dropout": config.label_dropout,
    }
    try:
        sit = create_sit(config.model, **arguments)
    except TypeError as error:
        raise ValueError(f"{config.model} does not take model_args {config.model_args}: {error}") from error
    side = sit.patch_size
    if shape[1] % side or shape[2] % side:
        raise ValueError(
            f"patches of {side} do not divide samples of {shape[1]} × {shape[2]}: change image_size"
        )
    return sit


def inherit_config(config: GenerationConfig, chosen: Collection[str]) -> GenerationConfig:
    """Where weights come from another run, its model and interpolant come with them.

    Raises:
        ValueError: an option was chosen that contradicts them.
    """
    if config.weights is None or not Path(config.weights).is_dir():
        return config
    source = read_config(Run.open(config.weights))
    taken = ("model", "model_args", "in_chans", "interpolant", "prediction", "conditional")
    refuse_contradictions(config, source, taken, chosen)
    return replace(config, **{name: getattr(source, name) for name in taken})


def _load_weights(sit: SiT, path: Path, console: Console) -> None:
    if not path.is_dir():
        load_release(sit, path)
        return
    source = open_pipeline(path, torch.device("cpu")).transformer.state_dict()
    own = sit.state_dict()
    fresh = [name for name, tensor in source.items() if name in own and tensor.shape != own[name].shape]
    source.update({name: own[name] for name in fresh})
    sit.load_state_dict(source)
    console.print(
        f"starts from {path}" + (f"; of other sizes there, {', '.join(fresh)} start fresh" if fresh else "")
    )


def _sit_of(model: nn.Module) -> SiT:
    """The SiT, without the projector that REPA trains beside it."""
    sit = model.sit if isinstance(model, AlignedSiT) else model
    assert isinstance(sit, SiT)
    return sit
