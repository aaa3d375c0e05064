"""The authors' checkpoints, AttNet's and SiT's → our state dicts. Only facts of their file format are used.

A release file is a dict with `model`, an EMA (`model_ema` in AttNet's, `ema` in SiT's) and training state
(among it an argparse.Namespace); bare state dicts are read too.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from atconv.models.attnet import VARIANTS, AttNet

if TYPE_CHECKING:
    from atconv.models.sit import SiT

__all__ = ["load_release"]

_logger = logging.getLogger(__name__)

# Applied in order to every name of the release.
_PREFIX = (r"^(module\.|_orig_mod\.)+", "")
# `downsample_layers.0` is the stem there.
_ATTNET_RENAMES: tuple[tuple[str, str], ...] = (
    _PREFIX,
    (r"^downsample_layers\.0\.0\.0\.", "stem.conv1."),
    (r"^downsample_layers\.0\.0\.1\.", "stem.norm1."),
    (r"^downsample_layers\.0\.2\.0\.", "stem.conv2."),
    (r"^downsample_layers\.0\.2\.1\.", "stem.norm2."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.token_mixer\.kernel_proj\.", ".token_mixer.context_proj."),
    (r"\.token_mixer\.x_proj\.", ".token_mixer.value_proj."),
    (r"\.token_mixer\.difference_control$", ".token_mixer.alpha"),
    (r"\.channel_mixer\.norm_layer\.", ".channel_mixer.norm."),
    (r"\.channel_mixer\.fc2\.", ".channel_mixer.proj."),
    (r"\.layer_scale_([12])\.", r".ls\1."),
    (r"\.norm_([12])\.", r".norm\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
_SIT_RENAMES: tuple[tuple[str, str], ...] = (
    _PREFIX,
    (r"^x_embedder\.proj\.", "patch_embed."),
    (r"^t_embedder\.mlp\.0\.", "time_embed.fc1."),
    (r"^t_embedder\.mlp\.2\.", "time_embed.fc2."),
    (r"^y_embedder\.embedding_table\.", "label_embed."),
    (r"^final_layer\.linear\.", "head.linear."),
    (r"^final_layer\.adaLN_modulation\.1\.", "head.modulation."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
    (r"\.attn\.kernel_proj\.", ".mixer.context_proj."),
    (r"\.attn\.x_proj\.", ".mixer.value_proj."),
    (r"\.attn\.difference_control$", ".mixer.alpha"),
    (r"\.attn\.(kernel_gen|qkv|proj)\.", r".mixer.\1."),
)


def load_release(model: AttNet | SiT, path: str | Path, use_ema: bool | None = None) -> None:
    """Load a checkpoint of the paper's authors into an AttNet or a SiT, in place.

    Reads files with `model` and an EMA, bare state dicts (`.pt`, `.pth` or `.safetensors`) and names prefixed
    by `module.` or `_orig_mod.`. The file is read with `weights_only=True`: nothing but tensors, plain
    containers and the release's argparse.Namespace is ever built from it.

    If an AttNet's file was trained for another number of classes, the head keeps the weights it has, and
    a warning says so.

    Args:
        model: for example `timm.create_model("attnet_t2")` or `create_sit("sit_atconv_s_2")`. For weights of
            the release's REPA folder, build the SiT with `time_reversed=True, mixer_act="silu"`.
        path: the file.
        use_ema: load the EMA weights, or those of the model itself; by default what the authors evaluate:
            the model itself of AttNet, and the EMA of SiT where the file has one.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `model` is neither, or `use_ema` is not a bool.
        ValueError: the file is truncated, is not a checkpoint, has no such weights, or belongs to another
            variant; the message names the first mismatch and the variant that would fit. `model` is
            unchanged then.
    """
    if use_ema not in (None, True, False):
        raise TypeError(f"load_release: use_ema must be True, False or None, got {use_ema!r}")
    if isinstance(model, AttNet):
        _load_attnet(model, path, bool(use_ema))
    elif _is_sit(model):
        _load_sit(model, path, use_ema)
    else:
        raise TypeError(
            f"load_release takes an AttNet classifier or a SiT, got {type(model).__name__}; for "
            "features_only, load it into timm.create_model(NAME) first"
        )


def _load_attnet(model: AttNet, path: str | Path, use_ema: bool) -> None:
    state = to_attnet(_state_dict(read_checkpoint(path), path, use_ema))
    keeps_head = _count_classes(state) != model.num_classes
    if keeps_head:
        state = _with_classifier_of(model.state_dict(), state)
    _fill(model, state, path, _attnet_advice)
    if keeps_head and model.num_classes:
        _logger.warning(
            "%s has another number of classes than the model's %d: the classifier head is newly initialized",
            path,
            model.num_classes,
        )


def _load_sit(model: SiT, path: str | Path, use_ema: bool | None) -> None:
    checkpoint = read_checkpoint(path)
    if use_ema is None:
        use_ema = isinstance(checkpoint.get("ema"), Mapping)
    state = to_sit(_state_dict(checkpoint, path, use_ema))
    _fill(model, state, path, _sit_advice)


def _fill(
    model: Any,
    state: Mapping[str, Tensor],
    path: str | Path,
    advice: Callable[[Mapping[str, Tensor]], str],
) -> None:
    mismatch = _first_mismatch(state, model.state_dict())
    if mismatch is not None:
        raise ValueError(f"{path} does not fit this model: {mismatch}. {advice(state)}")
    model.load_state_dict(state)


def _is_sit(model: object) -> TypeGuard[SiT]:
    """Whether `model` is a SiT, without importing diffusers for those who have none."""
    module = sys.modules.get("atconv.models.sit")
    return module is not None and isinstance(model, module.SiT)


def to_sit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a release state dict to ours; names that are already ours stay. The fixed position embedding
    is left out."""
    return {
        _renamed(name, _SIT_RENAMES): tensor
        for name, tensor in state.items()
        if not name.endswith("pos_embed")
    }


def to_attnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, reshape and cut a release state dict to ours; names that are already ours stay."""
    renamed = {}
    for name, tensor in state.items():
        name = _renamed(name, _ATTNET_RENAMES)
        head, joint, part = name.partition(".channel_mixer.fc1.")
        if joint:  # gate and value come from one layer there
            gate, value = tensor.chunk(2)
            renamed[f"{head}.channel_mixer.gate_proj.{part}"] = gate
            renamed[f"{head}.channel_mixer.value_proj.{part}"] = value
            continue
        if name.endswith("context_proj.weight") and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        renamed[name] = tensor
    return renamed


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


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
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds {foreign[1]}" if foreign else "it is not a file of torch.save, or is truncated"
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely: {reason}; tensors, plain containers and an "
            "argparse.Namespace are allowed"
        ) from error
    except Exception as error:  # on damaged files torch's readers raise a dozen kinds, IndexError among them
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is truncated, or of another kind"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint or state dict")
    return checkpoint


def _state_dict(checkpoint: Mapping[str, Any], path: str | Path, use_ema: bool) -> Mapping[str, Tensor]:
    keys = ("model_ema", "ema") if use_ema else ("model",)
    state = checkpoint
    if any(isinstance(checkpoint.get(key), Mapping) for key in ("model", "model_ema", "ema")):
        key = next((key for key in keys if isinstance(checkpoint.get(key), Mapping)), None)
        if key is None:
            accepted = " or ".join(map(repr, keys))
            raise ValueError(f"{path} has no weights under {accepted}, only {sorted(map(str, checkpoint))}")
        state = checkpoint[key]
    elif use_ema:
        raise ValueError(f"{path} is a bare state dict: it has no EMA weights; use use_ema=False")
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(
            f"{path} is not a checkpoint: it has keys {sorted(map(str, state))[:5]}, not tensors"
        )
    return state


def _with_classifier_of(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    classifier = ("head.fc.weight", "head.fc.bias")
    rest = {name: tensor for name, tensor in state.items() if name not in classifier}
    return rest | {name: expected[name] for name in classifier if name in expected}


def _count_classes(state: Mapping[str, Tensor]) -> int:
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


def _attnet_advice(state: Mapping[str, Tensor]) -> str:
    """Name the variant whose tensors, apart from the classifier's, are those of the file."""
    first = state.get("stem.conv1.weight")
    if first is None or first.ndim != 4:
        return "It is not an AttNet checkpoint"
    for name in VARIANTS:
        with torch.device("meta"):
            expected = timm.create_model(
                name, in_chans=first.shape[1], num_classes=_count_classes(state)
            ).state_dict()
        if _first_mismatch(_with_classifier_of(expected, state), expected) is None:
            return f"It fits {name} (in_chans={first.shape[1]}): timm.create_model('{name}')"
    return "It fits none of the seven AttNet variants"


def _sit_advice(state: Mapping[str, Tensor]) -> str:
    """Say which SiT the tensors of the file belong to, from their names and shapes."""
    first, table = state.get("patch_embed.weight"), state.get("label_embed.weight")
    if first is None or first.ndim != 4:
        return "It is not a SiT checkpoint"
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    atconv = sum(name.endswith(".mixer.alpha") for name in state)
    family = "attention" if atconv == 0 else "atconv" if atconv == depth else "hybrid"
    labels = "no classes" if table is None else f"{len(table)} rows of labels (one may be the null label)"
    return (
        f"It fits a SiT with token_mixer='{family}', hidden_size={first.shape[0]}, depth={depth}, "
        f"in_channels={first.shape[1]}, patch_size={first.shape[2]} and {labels}"
    )
