"""The authors' AttNet checkpoints → our state dicts. Only facts of their file format are used.

A release file is a `.pth` dict with `model`, `model_ema`, and training state (among it an
argparse.Namespace); bare state dicts are read too.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from atconv.models.attnet import VARIANTS, AttNet

__all__ = ["load_release"]

_logger = logging.getLogger(__name__)

# Applied in order to every name of the release. `downsample_layers.0` is the stem there.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(module\.|_orig_mod\.)+", ""),
    (r"^downsample_layers\.0\.0\.0\.", "stem.conv1."),
    (r"^downsample_layers\.0\.0\.1\.", "stem.norm1."),
    (r"^downsample_layers\.0\.2\.0\.", "stem.conv2."),
    (r"^downsample_layers\.0\.2\.1\.", "stem.norm2."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.token_mixer\.kernel_proj\.", ".token_mixer.context_proj."),
    (r"\.token_mixer\.x_proj\.", ".token_mixer.value_proj."),
    (r"\.token_mixer\.proj\.", ".token_mixer.out_proj."),
    (r"\.token_mixer\.difference_control$", ".token_mixer.alpha"),
    (r"\.channel_mixer\.norm_layer\.", ".channel_mixer.norm."),
    (r"\.layer_scale_([12])\.", r".ls\1."),
    (r"\.norm_([12])\.", r".norm\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def load_release(model: AttNet, path: str | Path, weights: Literal["model", "ema"] = "model") -> None:
    """Load a checkpoint published by the paper's authors into an AttNet, in place.

    Reads `.pth` files with `model` or `model_ema`, bare state dicts (`.pth` or `.safetensors`) and names
    prefixed by `module.` or `_orig_mod.`. The file is read with `weights_only=True`: nothing but
    tensors, plain containers and the release's argparse.Namespace is ever built from it.

    If the file was trained for another number of classes, the head keeps its fresh weights, and a
    warning says so.

    Args:
        model: an AttNet, for example `timm.create_model("attnet_t2")`.
        path: the file.
        weights: "model" (what the authors evaluate) or "ema".

    Raises:
        FileNotFoundError: no such file.
        TypeError: `model` is not an AttNet.
        ValueError: the file is truncated, is not a checkpoint, has no such weights, or belongs to another
            variant; the message names the first mismatch and the variant that would fit. `model` is
            unchanged then.
    """
    if not isinstance(model, AttNet):
        raise TypeError(
            f"load_release takes an AttNet classifier, got {type(model).__name__}; for features_only, load "
            "it into timm.create_model(NAME) first"
        )
    if weights not in ("model", "ema"):
        raise ValueError(f"load_release: weights must be 'model' or 'ema', got {weights!r}")
    state = to_attnet(_state_dict(read_checkpoint(path), path, weights))
    expected = model.state_dict()
    classifier = {name for name in ("head.fc.weight", "head.fc.bias") if name in expected}
    if _classes(state) != model.num_classes:
        for name in ("head.fc.weight", "head.fc.bias"):
            state.pop(name, None)
        state.update({name: expected[name] for name in classifier})
        if model.num_classes:
            _logger.warning(
                "%s has another number of classes than the model's %d: the classifier head starts fresh",
                path,
                model.num_classes,
            )
    mismatch = _first_mismatch(state, expected)
    if mismatch is not None:
        raise ValueError(f"{path} does not fit this model: {mismatch}. {_advice(state)}")
    model.load_state_dict(state)


def to_attnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename (and reshape) a release state dict to ours; names that are already ours stay."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("context_proj.weight") and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        renamed[name] = tensor
    return renamed


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a .pth or .safetensors file without ever building an arbitrary object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, is not a checkpoint, or holds objects that are not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely (tensors, plain containers and an "
            f"argparse.Namespace are allowed): {_first_line(error)}"
        ) from error
    except Exception as error:  # on damaged files torch's readers raise a dozen kinds, IndexError among them
        raise ValueError(
            f"{path} cannot be read as a checkpoint: truncated, or of another kind ({_first_line(error)})"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint or state dict")
    return checkpoint


def _state_dict(checkpoint: Mapping[str, Any], path: str | Path, weights: str) -> Mapping[str, Tensor]:
    key = "model_ema" if weights == "ema" else "model"
    found = checkpoint
    if isinstance(checkpoint.get("model"), Mapping) or isinstance(checkpoint.get("model_ema"), Mapping):
        if not isinstance(checkpoint.get(key), Mapping):
            raise ValueError(f"{path} has no weights under {key!r}, only {sorted(map(str, checkpoint))}")
        found = checkpoint[key]
    elif weights == "ema":
        raise ValueError(f"{path} is a bare state dict: it has no EMA weights; use weights='model'")
    if not found or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ValueError(
            f"{path} is not a checkpoint: it has keys {sorted(map(str, found))[:5]}, not tensors"
        )
    return found


def _classes(state: Mapping[str, Tensor]) -> int:
    weight = state.get("head.fc.weight")
    return weight.shape[0] if weight is not None and weight.ndim else 0


def _first_mismatch(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    for name, tensor in expected.items():
        if name not in state:
            return f"{name} {tuple(tensor.shape)} is missing from the file"
        if state[name].shape != tensor.shape:
            return f"{name} is {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the model"
    extra = next((name for name in state if name not in expected), None)
    return None if extra is None else f"{extra} {tuple(state[extra].shape)} is not in the model"


def _advice(state: Mapping[str, Tensor]) -> str:
    """Name the variant whose tensors, apart from the classifier's, are those of the file."""
    first = state.get("stem.conv1.weight")
    if first is None or first.ndim != 4:
        return "It is not an AttNet checkpoint"
    for name in VARIANTS:
        with torch.device("meta"):
            expected = timm.create_model(
                name, in_chans=first.shape[1], num_classes=_classes(state)
            ).state_dict()
        if (
            _first_mismatch(
                {**state, **{k: v for k, v in expected.items() if k.startswith("head.fc")}}, expected
            )
            is None
        ):
            return f"It fits {name} (in_chans={first.shape[1]}): timm.create_model('{name}')"
    return "It fits none of the seven AttNet variants"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
