"""Options of training and of sampling. A recipe is a YAML file of the training options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atconv.data.config import DataConfig
from atconv.diffusion.field import check_guidance
from atconv.diffusion.interpolants import Prediction
from atconv.diffusion.schedulers import (
    ODE_ADAPTIVE,
    ODE_FIXED,
    SDE_SOLVERS,
    Diffusion,
    InterpolantScheduler,
    LastStep,
    ODEScheduler,
    SDEScheduler,
)
from atconv.engine import recipes
from atconv.engine.config import LoopConfig, check_shares
from atconv.engine.run import Run

__all__ = [
    "DEFAULT_RECIPE",
    "GenerationConfig",
    "SamplerConfig",
    "read_config",
    "recipe_names",
    "recipe_path",
]

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

    interpolant: Literal["linear", "gvp", "vp"] = "linear"
    """how noise becomes data"""
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


@dataclass(kw_only=True)
class SamplerConfig:
    """Options of sampling."""

    sampler: str = "heun"
    """ODE: euler, midpoint, heun, heun3, rk4, explicit_adams, implicit_adams, or adaptive dopri5, dopri8,
    bosh3, fehlberg2, adaptive_heun; SDE: sde_euler (Euler–Maruyama), sde_heun"""
    steps: int = 50
    """steps of a fixed-step sampler; an SDE's last step comes on top"""
    guidance: float = 1.0
    """scale of classifier-free guidance; 1 is none"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """times (0 noise, 1 data) between which guidance acts"""
    guidance_channels: int | None = None
    """guide only the first so many channels (the release: 3); default all"""
    atol: float = 1e-6
    """absolute tolerance of adaptive solvers"""
    rtol: float = 1e-3
    """relative tolerance of adaptive solvers"""
    diffusion: Diffusion = "sigma"
    """w_t of the SDE dx = (v + w·score)dt + √(2w)dW"""
    diffusion_scale: float = 1.0
    """factor on w_t"""
    last_step: LastStep = "mean"
    """the SDE's step to the data: its mean, none, Tweedie's estimate, or a velocity step"""
    last_step_size: float = 0.04
    """time that the last step of the SDE covers"""

    def __post_init__(self) -> None:
        samplers = (*ODE_FIXED, *ODE_ADAPTIVE, *(f"sde_{solver}" for solver in SDE_SOLVERS))
        if self.sampler not in samplers:
            raise ValueError(f"no sampler {self.sampler!r}; there are {', '.join(samplers)}")
        check_guidance(self.guidance_interval, self.guidance_channels)
        ODEScheduler(atol=self.atol, rtol=self.rtol)  # checks options that this sampler does not read, too
        SDEScheduler(**self._sde_options)
        self.scheduler().set_timesteps(self.steps)

    def scheduler(
        self, interpolant: str = "linear", prediction: Prediction = "velocity"
    ) -> InterpolantScheduler:
        """The scheduler of these options, for a model of this interpolant and prediction."""
        model: dict[str, Any] = {"interpolant": interpolant, "prediction": prediction}
        if self.sampler.startswith("sde_"):
            solver = self.sampler.removeprefix("sde_")
            return SDEScheduler(solver=solver, **self._sde_options, **model)
        return ODEScheduler(method=self.sampler, atol=self.atol, rtol=self.rtol, **model)

    @property
    def _sde_options(self) -> dict[str, Any]:
        names = ("diffusion", "diffusion_scale", "last_step", "last_step_size")
        return {name: getattr(self, name) for name in names}


def recipe_names() -> list[str]:
    """Generation recipes that ship with the package, selectable by name."""
    return recipes.recipe_names("atconv.tasks.generation")


def recipe_path(name: str) -> Path:
    """The file of a generation recipe. Raises ValueError where there is none of that name."""
    return recipes.recipe_path("atconv.tasks.generation", name)


def read_config(run: Run) -> GenerationConfig:
    """The configuration of a generation run. Raises ValueError where it is not one."""
    return recipes.read_config(run, GenerationConfig, "generation")
