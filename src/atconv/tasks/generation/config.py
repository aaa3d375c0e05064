"""The options of a generation run. A recipe is a YAML file of these fields."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from atconv.data.config import DataConfig
from atconv.engine.config import TrainConfig
from atconv.engine.options import BelowOne, NonNegative, NonNegativeInt, Pixels, PositiveInt, Share
from atconv.engine.recipes import read_config
from atconv.tasks.common.model_options import ModelOptions
from atconv.tasks.common.start import inherit

__all__ = ["GenerationConfig", "TimeSampling", "inherit_config"]

TimeSampling = Literal["uniform", "logit_normal", "edm"]


@dataclass(kw_only=True)
class GeneratorOptions(ModelOptions):
    """The network, and what it sees."""

    group: ClassVar[str] = "model"
    common: ClassVar[tuple[str, ...]] = ("model", "conditional", "image_size")

    model: str = "sit_atconv_s_2"
    """model by name: sit_s_2, sit_atconv_s_2, sit_hybrid_s_2, and b, l, xl"""
    conditional: bool = True
    """learn the classes; false trains without labels"""
    label_dropout: BelowOne = 0.1
    """share of labels replaced by the null label; guidance needs some"""
    image_size: Pixels = 32
    """height and width of the images, where DATA is images; latents have their own"""
    hflip: Share = 0.0
    """probability of a horizontal flip; 0 for digits and text"""
    grad_checkpointing: bool = False
    """less memory for more time"""


@dataclass(kw_only=True)
class DiffusionOptions:
    """What the model learns."""

    group: ClassVar[str] = "diffusion"
    common: ClassVar[tuple[str, ...]] = ("interpolant", "sample_every")

    interpolant: Literal["linear", "gvp", "vp"] = "linear"
    """how noise becomes data"""
    prediction: Literal["velocity", "score", "noise"] = "velocity"
    """what the network predicts"""
    time_sampling: TimeSampling = "uniform"
    """distribution of training times: uniform; logit-normal (mean 0, deviation 1); or log-normal ratio of
    noise to data (mean −1.2, deviation 1.2) as EDM has it"""
    sample_every: NonNegativeInt = 10
    """plot a grid of samples every so many epochs; 0 never"""
    sample_guidance: NonNegative = 2.0
    """guidance of those grids"""


@dataclass(kw_only=True)
class AlignmentOptions:
    """Aligning the model's tokens with those of a frozen encoder (REPA)."""

    group: ClassVar[str] = "alignment"
    common: ClassVar[tuple[str, ...]] = ("repa_encoder",)

    repa_encoder: str | None = None
    """align tokens with the patch tokens of this frozen timm ViT, such as vit_base_patch14_dinov2.lvd142m"""
    repa_weights: str | None = None
    """weights file of the encoder; default: timm's pretrained weights; "none" leaves it untrained"""
    repa_block: PositiveInt = 8
    """block whose tokens are aligned, counted from 1"""
    repa_weight: NonNegative = 0.5
    """factor on the alignment loss"""


@dataclass(kw_only=True)
class GenerationConfig(DataConfig, GeneratorOptions, DiffusionOptions, AlignmentOptions, TrainConfig):
    """Options of `atconv generate train`."""

    weight_decay: NonNegative = 0.0
    """decay of tensors with two or more dimensions"""


def inherit_config(config: GenerationConfig, chosen: Collection[str] = ()) -> GenerationConfig:
    """Where weights come from another run, its model and interpolant come with them.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: an option was chosen that contradicts them.
    """
    run = config.source_run()
    if run is None:
        return config
    source = read_config(run, GenerationConfig, "generation")
    names = ("model", "model_args", "in_chans", "interpolant", "prediction", "conditional")
    return inherit(config, source, names, chosen)
