"""Outputs of a model's layers, and which layers mix tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from timm.layers import Attention, AttentionRope
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from atconv.mixers import MIXERS
from atconv.modules.base import ATConv

__all__ = [
    "as_map",
    "collect_outputs",
    "eval_mode",
    "evenly_spaced",
    "mixer_layers",
    "pooled_features",
    "prefix_tokens",
    "run_hooked",
    "stage_layers",
]

T = TypeVar("T")

# A registered mixer is a class, or a class with some options set.
_MIXERS: tuple[Any, ...] = (
    ATConv,
    Attention,
    AttentionRope,
    *{getattr(mixer.build, "func", mixer.build) for mixer in MIXERS.values()},
)


def mixer_layers(model: nn.Module) -> list[str]:
    """Names of a model's token mixers: those of `atconv.mixers`, the operator's modules and timm's attention;
    a mixer inside another one is not listed."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(outer == "" or name.startswith(f"{outer}.") for outer in names)
        if isinstance(module, _MIXERS) and not inside:
            names.append(name)
    return names


def stage_layers(model: nn.Module) -> dict[str, list[str]]:
    """The stages of a timm backbone: the last layer of each → all its layers, from timm's `feature_info`.

    The blocks of a ViT, which have one stride, are one stage. Empty for a model without stages.
    """
    feature_info: Any = getattr(model, "feature_info", None)
    stages: dict[Any, list[str]] = {}
    for layer in feature_info if isinstance(feature_info, list) else []:
        if "module" in layer:
            stages.setdefault(layer["reduction"], []).append(str(layer["module"]))
    return {layers[-1]: layers for layers in stages.values()}


def as_map(model: nn.Module, output: Tensor, image_size: tuple[int, int]) -> Tensor | None:
    """A layer's output as a map, B C h w: unchanged if it is one, else the spatial tokens of a timm ViT
    (B N C) on the grid of its patches. None where it is neither."""
    if output.ndim == 4:
        return output
    embedding: Any = getattr(model, "patch_embed", None)
    if output.ndim != 3 or not hasattr(embedding, "dynamic_feat_size"):
        return None
    grid_size, prefix = embedding.dynamic_feat_size(image_size), prefix_tokens(model)
    if output.shape[1] != prefix + grid_size[0] * grid_size[1]:
        return None
    return output[:, prefix:].mT.unflatten(2, grid_size)


def prefix_tokens(model: nn.Module) -> int:
    """Number of class and register tokens that a timm ViT puts before its patches."""
    return int(getattr(model, "num_prefix_tokens", 0))


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """What the classifier of a timm model is given: pooled features, B D, of its input, B C H W.

    Raises:
        ValueError: the model gives no such features.
    """
    timm_model: Any = model
    try:
        features: Tensor = timm_model.forward_head(timm_model.forward_features(images), pre_logits=True)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"a {type(model).__name__} gives no features before its classifier: {error}"
        ) from error
    if features.ndim != 2:
        raise ValueError(
            f"a {type(model).__name__} gives features {tuple(features.shape)} before its classifier, not one "
            "vector an image: its global_pool is off"
        )
    return features


def collect_outputs(model: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Outputs of the named layers for a batch, through hooks and in eval mode; the model stays as it was.

    Args:
        images: the model's input, batch first.
        layers: names as in `model.named_modules()`.

    Returns:
        outputs by name, in the order of `layers`, with gradients where those are on.

    Raises:
        ValueError: the model has no such layer, or it did not run.
    """
    names, modules = list(layers), dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"the model has no layer {', '.join(unknown)}")
    outputs: dict[str, Tensor] = {}

    def keep_output(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep_output(name)) for name in names]
    run_hooked(model, images, handles)
    silent = [name for name in names if name not in outputs]
    if silent:
        raise ValueError(f"the layer {', '.join(silent)} did not run")
    return {name: outputs[name] for name in names}


def run_hooked(model: nn.Module, images: Tensor, handles: Sequence[RemovableHandle]) -> Any:
    """The model's output for a batch in eval mode; then its hooks are removed, also after an error."""
    try:
        with eval_mode(model):
            return model(images)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: every module returns to the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances; the first and the last are among them if `count` is 2 or
    more."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]
