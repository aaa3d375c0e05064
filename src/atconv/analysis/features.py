"""What the layers of a model put out, and which of them mix tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from timm.layers import Attention, AttentionRope
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from atconv.mixers import MIXERS
from atconv.modules import ATConv2d, ATConvTokens

__all__ = [
    "as_map",
    "collect_outputs",
    "evaluating",
    "mixer_layers",
    "prefix_tokens",
    "run_hooked",
    "spread",
    "stage_layers",
]

T = TypeVar("T")

# A registered mixer is a class, or a class with some options set.
_MIXERS: tuple[Any, ...] = (
    ATConv2d,
    ATConvTokens,
    Attention,
    AttentionRope,
    *{getattr(mixer.build, "func", mixer.build) for mixer in MIXERS.values()},
)


def mixer_layers(model: nn.Module) -> list[str]:
    """Names of a model's token mixers: those of `atconv.mixers`, the operator's modules, timm's attention;
    each the outermost of its kind."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(outer == "" or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, _MIXERS) and not inside:
            found.append(name)
    return found


def stage_layers(model: nn.Module) -> dict[str, list[str]]:
    """The stages of a timm backbone: the layer that ends each → all layers it consists of, as timm counts
    them. The blocks of a ViT, of one stride, are one stage. Nothing for a model without stages."""
    described: Any = getattr(model, "feature_info", None)
    stages: dict[Any, list[str]] = {}
    for layer in described if isinstance(described, list) else []:
        if "module" in layer:
            stages.setdefault(layer["reduction"], []).append(str(layer["module"]))
    return {layers[-1]: layers for layers in stages.values()}


def as_map(model: nn.Module, output: Tensor, image_size: tuple[int, int]) -> Tensor | None:
    """A layer's output as a map, B C h w: as it is, or the spatial tokens of a timm ViT (B N C) laid out on
    the grid of its patches. None where it is neither."""
    if output.ndim == 4:
        return output
    embedding: Any = getattr(model, "patch_embed", None)
    if output.ndim != 3 or not hasattr(embedding, "dynamic_feat_size"):
        return None
    grid, prefix = embedding.dynamic_feat_size(image_size), prefix_tokens(model)
    if output.shape[1] != prefix + grid[0] * grid[1]:
        return None
    return output[:, prefix:].mT.unflatten(2, grid)


def prefix_tokens(model: nn.Module) -> int:
    """Class and register tokens that a timm ViT puts before its patches."""
    return int(getattr(model, "num_prefix_tokens", 0))


def collect_outputs(model: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """What the named layers put out for a batch, through hooks and in eval mode; the model stays as
    it was.

    Args:
        images: the model's input, batch first.
        layers: names as in `model.named_modules()`.

    Returns:
        outputs by name, in the order the layers were named, with gradients where those are on.

    Raises:
        ValueError: the model has no such layer, or it did not run.
    """
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    wanted = list(layers)
    unknown = [name for name in wanted if name not in modules]
    if unknown:
        raise ValueError(f"the model has no layer {', '.join(unknown)}")

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in wanted]
    run_hooked(model, images, handles)
    silent = [name for name in wanted if name not in found]
    if silent:
        raise ValueError(f"the layer {', '.join(silent)} did not run")
    return {name: found[name] for name in wanted}


def run_hooked(model: nn.Module, images: Tensor, handles: Sequence[RemovableHandle]) -> Any:
    """What the model makes of a batch in eval mode; then its hooks are removed, also after an error."""
    try:
        with evaluating(model):
            return model(images)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: every module goes back to the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spread; the first and the last among them where there are two."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)]
