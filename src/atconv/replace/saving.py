"""What was replaced is saved with the model, by the model's own library, and opened again.

A description is plain: {"blocks.0.attn": {"kernel_size": 3}, "stem.conv": {"convolution": True}, …}. An
attention with a kernel of each channel to start from has "kernel_bias": True as well, a convolution its
"kernel_groups" and "context_bins" where they were given. The description is in the config of a transformers
or diffusers model under `atconv_replacement`, and among the notes of a timm model's `pretrained_cfg`.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from atconv.replace.adapters import ATConvAdapter
from atconv.replace.convolutions import ATConvConvolution, build_convolution, convolution_sites
from atconv.replace.families import find_sites
from atconv.replace.install import build, installed

__all__ = ["apply", "describe", "from_pretrained", "record"]

Description = Mapping[str, Mapping[str, Any]]
KEY = "atconv_replacement"
NOTE = f"{KEY}="
# What tells what was replaced among saved weights.
ATTENTION_MARK, CONVOLUTION_MARK = ".replaces_attention", ".replaces_convolution"
CONVOLUTION = {"convolution": True}


def describe(source: nn.Module | Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What was replaced in a model, by name, from the model or from its state dict; ready for JSON.

    >>> state = safetensors.torch.load_file("vit.safetensors")
    >>> vit = timm.create_model("deit_small_patch16_224")
    >>> atconv.replace.apply(vit, atconv.replace.describe(state))
    >>> vit.load_state_dict(state)
    """
    description: dict[str, dict[str, Any]] = {}
    if isinstance(source, nn.Module):
        for name, module in source.named_modules():
            if isinstance(module, ATConvAdapter):
                bias = {} if module.mixer.kernel_bias is None else {"kernel_bias": True}
                description[name] = {"kernel_size": module.mixer.kernel_size, **bias}
            elif isinstance(module, ATConvConvolution):
                kernels: Any = module.kernel_bias
                groups, weights = kernels.shape
                description[name] = _describe_convolution(
                    groups, module.in_channels, weights, module.context_bins
                )
        return description
    for key in source:
        name, mark = key.rpartition(".")[0], key[key.rfind(".") :]
        if mark == ATTENTION_MARK:
            bias = {"kernel_bias": True} if f"{name}.mixer.kernel_bias" in source else {}
            weights = len(source[f"{name}.mixer.kernel_gen.weight"])
            description[name] = {"kernel_size": math.isqrt(weights), **bias}
        elif mark == CONVOLUTION_MARK:
            shapes = source[f"{name}.context_proj.weight"].shape, source[f"{name}.kernel_gen.weight"].shape
            description[name] = _describe_convolution(*shapes[0], *shapes[1])
    return description


def _describe_convolution(groups: int, channels: int, weights: int, bins: int) -> dict[str, Any]:
    chosen = {"kernel_groups": groups} if groups != channels else {}
    return CONVOLUTION | chosen | ({"context_bins": bins} if bins != weights else {})


def apply(model: nn.Module, description: Description) -> None:
    """Put ATConv where a description says: then load the weights that were saved.

    Args:
        model: as it was before `replace_attention` or `replace_convolution`; it is changed in place.
        description: of `describe`.

    Raises:
        ValueError: the description is empty or malformed, or the model has no attention of that name that can
            be replaced. Nothing is replaced then.
    """
    if not isinstance(description, Mapping) or not description:
        raise ValueError(
            "a description maps names to options, such as {'blocks.0.attn': {'kernel_size': 3}}; "
            f"got {description!r}"
        )
    convolutions: dict[str, Any] = {site.name: site for site in convolution_sites(model)}
    sites = convolutions | {site.name: site for site in find_sites(model)}
    chosen: list[Any] = [_find_site(model, sites, name) for name in description]
    modules = [
        build_convolution(site, **_check_convolution_options(options))
        if site.name in convolutions
        else build(model, site, **_check_attention_options(options))
        for site, options in zip(chosen, description.values(), strict=True)
    ]
    with installed(model, chosen, modules):
        record(model)


def _find_site(model: Any, sites: Mapping[str, Any], name: str) -> Any:
    """The site of that name. transformers opens a model with a head as one without, and the reverse."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = (name, name.removeprefix(prefix), prefix + name)
    site = next((sites[each] for each in names if each in sites), None)
    if site is None or site.reason:
        reason = f"nothing to replace at {name}" if site is None else f"at {site.name}: {site.reason}"
        raise ValueError(f"nothing was replaced. {type(model).__name__}: {reason}")
    return site


def _check_convolution_options(options: Any) -> dict[str, Any]:
    others = dict(options) if isinstance(options, Mapping) else {}
    whole = all(type(others.get(name, 1)) is int for name in ("kernel_groups", "context_bins"))
    known = others.pop("convolution", None) is True and others.keys() <= {"kernel_groups", "context_bins"}
    if not (known and whole):
        raise ValueError(
            f"the options of a convolution are {CONVOLUTION}, got {options!r}; kernel_groups and "
            "context_bins may be among them, whole numbers"
        )
    return others


def _check_attention_options(options: Any) -> dict[str, Any]:
    known = isinstance(options, Mapping) and {"kernel_size"} <= set(options) <= {"kernel_size", "kernel_bias"}
    if not known or type(options.get("kernel_bias", True)) is not bool:
        raise ValueError(f"the options of an attention are such as {{'kernel_size': 3}}, got {options!r}")
    return dict(options)


def record(model: Any) -> None:
    """Write the description into the model's config, for whatever its library saves."""
    description = describe(model)
    config = getattr(model, "config", None)
    if hasattr(model, "register_to_config"):  # diffusers
        model.register_to_config(**{KEY: description})
    elif hasattr(config, "to_dict"):  # transformers
        setattr(config, KEY, description)
    elif isinstance(getattr(model, "pretrained_cfg", None), dict):  # timm opens no config of other fields
        notes = [note for note in model.pretrained_cfg.get("notes") or () if not note.startswith(NOTE)]
        model.pretrained_cfg["notes"] = (*notes, NOTE + json.dumps(description))


def from_pretrained(kind: Callable[..., Any], source: Any, **options: Any) -> Any:
    """Open a model that was saved after `replace_attention`, as its library opens its own.

    >>> atconv.replace.from_pretrained(timm.create_model, "local-dir:vit")     # of timm.models.save_for_hf
    >>> atconv.replace.from_pretrained(transformers.AutoModel, "vit")          # of model.save_pretrained
    >>> atconv.replace.from_pretrained(diffusers.DiTTransformer2DModel, "dit")

    Args:
        kind: `timm.create_model`, or a model class of transformers or diffusers.
        source: what its `from_pretrained` takes: a folder or a name on the hub; for timm, "local-dir:…" or
            "hf-hub:…".
        options: of `kind.from_pretrained`, or of `timm.create_model`.

    Returns:
        the model, with its weights.

    Raises:
        ValueError: nothing was replaced in what was saved.
        TypeError: `kind` is none of these.
    """
    if getattr(kind, "__module__", "").startswith("timm."):
        return _from_timm(kind, source, **options)
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise TypeError(
            "from_pretrained takes timm.create_model or a model class of transformers or diffusers, "
            f"got {kind!r}"
        )
    if hasattr(kind, "load_config"):  # diffusers
        model_class, description = kind, kind.load_config(source, **options).get(KEY)
    else:
        model_class, config = _transformers_class(kind, source, **options)
        description = getattr(config, KEY, None)
    model = _replacing(model_class, _not_empty(description, source)).from_pretrained(source, **options)
    opened = model[0] if isinstance(model, tuple) else model  # with output_loading_info
    opened.__class__ = model_class
    return model


def _from_timm(create_model: Callable[..., Any], source: Any, **options: Any) -> nn.Module:
    from timm.models import load_pretrained

    model = create_model(source, **options | {"pretrained": False})
    notes = model.pretrained_cfg.get("notes") or ()
    note = next((note for note in notes if note.startswith(NOTE)), None)
    apply(model, _not_empty(note and json.loads(note.removeprefix(NOTE)), source))
    load_pretrained(model, num_classes=model.num_classes, in_chans=getattr(model, "in_chans", 3))
    return model


def _transformers_class(kind: Any, source: Any, config: Any = None, **options: Any) -> tuple[type, Any]:
    """The model class that from_pretrained builds, and its config."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.auto_factory import _get_model_class

    if not isinstance(config, PretrainedConfig):
        config = AutoConfig.from_pretrained(config or source, **options)
    mapping = getattr(kind, "_model_mapping", None)  # of Auto classes
    return kind if mapping is None else _get_model_class(config, mapping), config


def _not_empty(description: Description | None, source: Any) -> Description:
    if not description:
        raise ValueError(f"nothing was replaced in {source}: open it as its library does")
    return description


def _replacing(model_class: Any, description: Description) -> Any:
    """The class, with ATConv in what it builds: from_pretrained loads weights after that."""

    @functools.wraps(model_class.__init__)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(KEY, None)
        model_class.__init__(self, *args, **kwargs)
        apply(self, description)

    # diffusers reads the arguments, and warns of what else is in the config.
    signature = inspect.signature(model_class.__init__)
    extra = inspect.Parameter(KEY, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = sorted((*signature.parameters.values(), extra), key=lambda parameter: parameter.kind)
    init.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    names = {name: getattr(model_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(model_class.__name__, (model_class,), names | {"__init__": init})
