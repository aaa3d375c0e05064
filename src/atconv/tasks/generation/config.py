"""What a generation run can be told. A recipe is a YAML file of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atconv.data.config import DataConfig
from atconv.diffusion.interpolants import Prediction
from atconv.engine import recipes
from atconv.engine.config import LoopConfig, check_shares
from atconv.engine.run import Run

__all__ = ["DEFAULT_RECIPE", "GenerationConfig", "read_config", "recipe_names", "recipe_path"]

DEFAULT_RECIPE = "small"


@dataclass(kw_only=True)
class GenerationConfig(DataConfig, LoopConfig):
    """Options of `atconv generate train`: data, model, interpolant, and the loop's."""

    model: str = "sit_atconv_s_2"
    """model by name: sit_s_2, sit_atconv_s_2, sit_hybrid_s_2, and b, l, xl"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """further arguments of the model, such as {depth: 6, hidden_size: 128, num_heads: 4}"""
    weights: str | None = None
    """start from the authors' file, or from another run's folder"""
    conditional: bool = True
    """learn the classes; false trains without labels"""
    label_dropout: float = 0.1
    """share of labels replaced by the null label; guidance needs some"""
    image_size: int = 32
    """side of the square images, where DATA is pictures; latents have their own"""
    in_chans: int = 3
    """3 reads pictures in color, 1 in gray"""
    hflip: float = 0.0
    """probability of a horizontal flip; 0 for digits and text"""
    grad_checkpointing: bool = False
    """less memory for more time"""

    weight_decay: float = 0.0
    """decay of tensors with two or more dimensions"""

    path: Literal["linear", "gvp", "vp"] = "linear"
    """the interpolant"""
    prediction: Prediction = "velocity"
    """what the network predicts"""
    time_sampling: Literal["uniform", "logit_normal", "edm"] = "uniform"
    """distribution of training times: uniform; logit-normal (mean 0, deviation 1); or log-normal ratio of
    noise to data (mean −1.2, deviation 1.2) as EDM has it"""

    repa_encoder: str | None = None
    """align tokens with the patch tokens of this frozen timm ViT (REPA), such as
    vit_base_patch14_dinov2.lvd142m"""
    repa_weights: str | None = None
    """weights file of the encoder; default: timm's pretrained weights; "none" leaves it untrained"""
    repa_block: int = 8
    """block whose tokens are aligned, counted from 1"""
    repa_weight: float = 0.5
    """factor on the alignment loss"""

    sample_every: int = 10
    """draw a grid of samples every so many epochs; 0 never"""
    sample_guidance: float = 2.0
    """guidance of those grids"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "hflip")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        for name in ("image_size", "repa_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 3 (color) or 1 (gray), got {self.in_chans}")
        if self.sample_every < 0 or self.repa_weight < 0:
            raise ValueError("sample_every and repa_weight must not be negative")


def recipe_names() -> list[str]:
    """Generation recipes that ship with the package, selectable by name."""
    return recipes.recipe_names("atconv.tasks.generation")


def recipe_path(name: str) -> Path:
    """The file of a generation recipe. Raises ValueError where there is none of that name."""
    return recipes.recipe_path("atconv.tasks.generation", name)


def read_config(run: Run) -> GenerationConfig:
    """The configuration of a generation run. Raises ValueError where it is not one."""
    return recipes.read_config(run, GenerationConfig, "generation")
