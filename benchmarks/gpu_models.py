"""Models on a GPU: AttNet-T2 compared with others of its size, and SiT with attention and with ATConv."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.deploy import fold
from atconv.ops import gated_unit
from atconv.ops.backend import Backend, use_backend
from gpu_timing import Row, Setup
from plain import plain_attnet

__all__ = ["backbones", "generators", "make_backbone", "training_step", "tuned"]

Case = tuple[str, Callable[[], Row]]

OTHERS = {
    "ConvNeXt-T": "convnext_tiny",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "DeiT-S": "deit_small_patch16_224",
    "CAFormer-S18": "caformer_s18",
    "MambaOut-T": "mambaout_tiny",
}
TRIAL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


def make_backbone(setup: Setup, name: str) -> nn.Module:
    """AttNet-T2, folded for inference or plainly transcribed, or a model of timm; small for a trial."""
    with setup.device:
        if name in OTHERS:
            return timm.create_model("convnext_atto" if setup.trial else OTHERS[name], num_classes=10)
        small: dict[str, Any] = TRIAL if setup.trial else {}
        model = timm.create_model("attnet_t2", num_classes=10, **small)
    if name == "plain":
        return plain_attnet(model)
    return fold(model.eval()) if name == "AttNet-T2 folded" else model


def backbones(setup: Setup) -> Iterator[Case]:
    """Images a second and memory, bfloat16, channels-last; the most telling rows first."""
    run = partial(_backbone, setup)
    pair = ("AttNet-T2", "ConvNeXt-T")
    for train, compiled in ((False, False), (True, False), (False, True), (True, True)):
        kind = f"{'training' if train else 'inference'}, {'compiled' if compiled else 'eager'}"
        for name in pair:
            yield f"{name}, {kind}", partial(run, name, train=train, compiled=compiled)
        label, options = f"AttNet-T2, {kind}, all kernels", dict(train=train, compiled=compiled)
        yield label, partial(run, "AttNet-T2", backend="triton", **options)
        if not compiled and not train:
            yield f"{label}, CUDA graph", partial(run, "AttNet-T2", backend="triton", graph=True)
        if compiled and not train:
            yield f"AttNet-T2 folded, {kind}", partial(run, "AttNet-T2 folded", compiled=True)
            for name in ("AttNet-T2 folded", "ConvNeXt-T"):
                yield f"{name}, {kind}, CUDA graph", partial(run, name, compiled=True, graph=True)
    for train in (False, True):
        kind = "training" if train else "inference"
        label = f"AttNet-T2, {kind}, eager, PyTorch's operators"
        yield label, partial(run, "AttNet-T2", train=train, backend="eager")
        label = f"AttNet-T2, {kind}, eager, all kernels, not widened"
        yield label, partial(run, "AttNet-T2", train=train, backend="triton", whole=1)
        yield f"plain, {kind}, eager", partial(run, "plain", train=train)
    for name in (*pair, "AttNet-T2 folded"):
        yield f"{name}, one image, eager", partial(run, name, batch=1)
        yield f"{name}, one image, CUDA graph", partial(run, name, batch=1, graph=True)
    for name, train in itertools.product(list(OTHERS)[1:], (False, True)):
        yield f"{name}, {'training' if train else 'inference'}, eager", partial(run, name, train=train)


def tuned(setup: Setup) -> Iterator[Case]:
    """AttNet-T2 with the compiler's longest search. It takes long, so it comes last."""
    mode = "max-autotune-no-cudagraphs"
    for train in (False, True):
        label = f"AttNet-T2, {'training' if train else 'inference'}, {mode}"
        yield label, partial(_backbone, setup, "AttNet-T2", train=train, compiled=True, mode=mode)


def _backbone(
    setup: Setup,
    name: str,
    batch: int = 128,
    train: bool = False,
    backend: Backend = "auto",
    compiled: bool = False,
    mode: str | None = None,
    graph: bool = False,
    whole: int = gated_unit.WHOLE,
) -> Row:
    """`auto` takes the kernels that have run on a GPU before, for inference; `triton` takes all of them."""
    torch.compiler.reset()
    setup.free_memory()
    batch = min(batch, 2) if setup.trial else batch
    torch.manual_seed(0)
    model = make_backbone(setup, name).to(setup.device, memory_format=torch.channels_last)
    size = 32 if setup.trial else 224
    x = torch.randn(batch, 3, size, size, device=setup.device).contiguous(memory_format=torch.channels_last)
    if compiled:
        compile_blocks(setup, model, mode)
    with use_backend(backend), mock.patch.object(gated_unit, "WHOLE", whole):
        step = training_step(setup, model, x) if train else _inference(model, x)
        seconds = setup.seconds(setup.captured(step) if graph else step)
        row = {"images/s": batch / seconds, "ms": 1000 * seconds}
        return row if graph else row | {"peak MiB": setup.peak_mib(step)}  # a graph keeps its memory


def compile_blocks(setup: Setup, model: Any, mode: str | None = None) -> None:
    """Each block by itself: alike blocks share their code, and compiling takes seconds."""
    torch._dynamo.config.recompile_limit = 64
    blocks = model.blocks if hasattr(model, "blocks") else [b for s in model.stages for b in s.blocks]
    for block in blocks:
        block.compile(backend=setup.compiler, dynamic=False, mode=None if setup.trial else mode)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16)


def training_step(setup: Setup, model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward, backward and AdamW. Weights stay float32, bfloat16 is autocast's."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4, fused=True)
    labels = torch.arange(len(x), device=x.device) % 10

    def step() -> None:
        with autocast(setup.device):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    model, x = model.eval().to(torch.bfloat16), x.to(torch.bfloat16)

    def step() -> None:
        with torch.inference_mode():
            model(x)

    return step


# Latents of 32², 64² and 128²: 256, 1,024 and 4,096 tokens.
LATENTS = {32: 32, 64: 16, 128: 4}


def generators(setup: Setup) -> Iterator[Case]:
    """Seconds of a velocity, bfloat16, and of sampling an image; last what compiles whole models."""
    sizes, families = (8,) if setup.trial else tuple(LATENTS), ("sit", "sit_atconv")
    for variant, compiled in itertools.product(("xl_2", "b_2"), (False, True)):
        for size, family in itertools.product(sizes, families):
            label = f"{family}_{variant}, latent {size}²{', compiled' if compiled else ''}"
            yield label, partial(_velocity, setup, f"{family}_{variant}", size, compiled)
    for graphs, family in itertools.product((False, True), families):
        label = f"{family}_xl_2, one image in 50 steps{', CUDA graphs' if graphs else ''}"
        yield label, partial(_sampling, setup, f"{family}_xl_2", graphs)


@lru_cache(2)
def _sit(setup: Setup, name: str, compiled: bool = False) -> Any:
    from atconv.models.sit import create_sit  # diffusers is not everywhere

    small: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2} if setup.trial else {}
    torch.manual_seed(0)
    with setup.device:
        model = create_sit(name, **small).eval()
    for parameter in model.parameters():  # no layer is left at its initial zeros
        nn.init.normal_(parameter, std=0.02)
    if compiled:
        compile_blocks(setup, model)
    return nn.Module.to(model, setup.device, torch.bfloat16)


def _velocity(setup: Setup, name: str, size: int, compiled: bool) -> Row:
    batch = LATENTS.get(size, 1)
    model = _sit(setup, name, compiled)
    x = torch.randn(batch, 4, size, size, device=setup.device, dtype=torch.bfloat16)
    t, labels = (
        torch.rand(batch, device=setup.device),
        torch.zeros(batch, dtype=torch.long, device=setup.device),
    )
    with torch.inference_mode():
        step = partial(model, x, t, labels)
        seconds = setup.seconds(step)
        return {"batch": batch, "ms": 1000 * seconds, "ms a sample": 1000 * seconds / batch}


def _sampling(setup: Setup, name: str, graphs: bool) -> Row:
    from atconv.diffusion.pipeline import SiTPipeline
    from atconv.diffusion.schedulers import ODEScheduler

    model = copy.copy(_sit(setup, name))  # which is compiled as a whole
    if graphs:
        model.compile(backend=setup.compiler, mode=None if setup.trial else "reduce-overhead")
    pipeline = SiTPipeline(model, ODEScheduler(method="euler"))
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"class_labels": [0], "guidance_scale": 4.0, "output_type": "latent"}
    options |= {"num_inference_steps": 2, "height": 8, "width": 8} if setup.trial else {}
    return {"seconds": setup.seconds(lambda: pipeline(**options))}
