"""What several test files share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

import atconv  # noqa: F401  (registers the models with timm)
from atconv.models.attnet import AttNet

FIXTURES = Path(__file__).parents[1] / "fixtures"

# The operator's weights under their state-dict names, in the order of the arguments of `functional.atconv`.
WEIGHTS = (
    "context_proj.weight",
    "context_proj.bias",
    "kernel_gen.weight",
    "kernel_gen.bias",
    "alpha",
    "value_proj.weight",
    "value_proj.bias",
    "proj.weight",
    "proj.bias",
)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The error's norm is at most `tolerance` times that of `expected`."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    expected = expected.detach().double()
    error = (actual.detach().double() - expected).norm() / expected.norm().clamp_min(1e-300)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


@functools.cache
def reference(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a reference file."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not iterable itself)
        return tensors, {key: json.loads(value) for key, value in file.metadata().items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@functools.cache
def release_shapes() -> dict[str, dict[str, list[int]]]:
    """Tensor names and shapes of the release's models, by our variant names."""
    shapes = json.loads((FIXTURES / "attnet_release_keys.json").read_text())
    return {f"attnet_{name}": tensors for name, tensors in shapes.items()}


def release_state(variant: str, seed: int = 0) -> dict[str, Tensor]:
    """A random state dict with the names and shapes of the release's `variant`."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in release_shapes()[variant].items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(seed)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator)
    return state


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near 1: the initial ones make outputs almost constant, hiding errors."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.ndim >= 2:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5, generator=generator)
    return module


def tiny_attnet(**kwargs: Any) -> AttNet:
    """A small AttNet in eval mode with weights that matter."""
    config = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    return randomize(timm.create_model("attnet_xxs", **{**config, **kwargs})).eval()
