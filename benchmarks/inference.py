"""AttNet-T2 against its floor, its plain transcription, and models of timm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor

from atconv import deploy
from atconv.deploy.timing import median_seconds
from floor import floor_seconds, list_products
from models import OTHERS, attnet, check_floor, check_same, images, other, plain

__all__ = ["compiled", "eager"]

Rows = list[dict[str, Any]]


@torch.inference_mode()
def eager(dtype: torch.dtype, batch: int) -> Rows:
    """Seconds of a batch: the floor, ours as it comes and folded, plain, and other models."""
    x = images(batch, dtype=dtype)
    models: dict[str, nn.Module] = {"plain": plain(dtype), "as it comes": attnet(dtype)}
    models["folded"] = deploy.fold(attnet()).to(dtype)
    for name in ("as it comes", "folded"):
        check_same(models["plain"], models[name], x)
    models |= {label: other(name, dtype) for label, name in OTHERS.items()}
    return _with_floor(dtype, batch, {name: partial(model, x) for name, model in models.items()})


@torch.inference_mode()
def compiled(dtype: torch.dtype, batch: int) -> Rows:
    """The same for torch.compile, ours folded and ConvNeXt-T; and how long the compiler took.

    Weights are constants to the compiler ("freezing"): it packs them once and fuses what follows a product.
    """
    x, calls, took = images(batch, dtype=dtype), {}, {}
    models = {"folded": deploy.fold(attnet()).to(dtype), "ConvNeXt-T": other(OTHERS["ConvNeXt-T"], dtype)}
    for name, model in models.items():
        made = torch.compile(model, fullgraph=True)
        started = time.perf_counter()
        with inductor.patch(freezing=True):
            made(x)
        took[name] = time.perf_counter() - started
        check_same(model, made, x)
        calls[name] = partial(made, x)
    return [{**row, "compile": took.get(row["model"])} for row in _with_floor(dtype, batch, calls)]


def _with_floor(dtype: torch.dtype, batch: int, calls: Mapping[str, Callable[[], object]]) -> Rows:
    """The floor is measured before and after the models, since a machine's speed drifts."""
    check_floor()
    products = list_products(attnet(), images(batch))
    before = sum(floor_seconds(products, dtype).values())
    seconds = median_seconds(calls)
    kinds = floor_seconds(products, dtype)
    both = [before, sum(kinds.values())]
    floor = {"model": "floor", "seconds": statistics.mean(both), "before and after": both, "kinds": kinds}
    return [floor, *({"model": name, "seconds": seconds[name]} for name in calls)]
