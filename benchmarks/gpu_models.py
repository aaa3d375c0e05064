"""Models on a GPU: AttNet-T2 compared with others of its size, and SiT with attention and with ATConv."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.ops.backend import Backend, use_backend
from gpu_timing import Row, Setup
from plain import plain_attnet

__all__ = ["backbones", "generators", "make_backbone"]

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
    """AttNet-T2, its plain transcription, or a model of timm. Small ones for a trial."""
    if name not in ("AttNet-T2", "plain"):
        return timm.create_model("convnext_atto" if setup.trial else OTHERS[name], num_classes=10)
    small: dict[str, Any] = TRIAL if setup.trial else {}
    model = timm.create_model("attnet_t2", num_classes=10, **small)
    return model if name == "AttNet-T2" else plain_attnet(model)


def backbones(setup: Setup) -> Iterator[Case]:
    """Images a second and memory, bfloat16, channels-last."""
    batch = 2 if setup.trial else 128
    run = partial(_backbone, setup)
    for train in (False, True):
        kind = "training" if train else "inference"
        for name, backend in (("AttNet-T2", "eager"), ("AttNet-T2", "triton"), ("ConvNeXt-T", "eager")):
            yield f"{name}, {kind}, {backend}", partial(run, name, batch, train, backend)
    for name in ("AttNet-T2", "ConvNeXt-T"):
        for train in (False, True):
            kind = "training" if train else "inference"
            yield f"{name}, {kind}, compiled", partial(run, name, batch, train, "eager", compiled=True)
    yield (
        "AttNet-T2, inference, triton, compiled",
        partial(run, "AttNet-T2", batch, False, "triton", compiled=True),
    )
    for train in (False, True):
        kind = "training" if train else "inference"
        for name in ("plain", *list(OTHERS)[1:]):
            yield f"{name}, {kind}, eager", partial(run, name, batch, train, "eager")
    for name in ("AttNet-T2", "ConvNeXt-T"):
        yield f"{name}, one image, eager", partial(run, name, 1, False, "eager")
        yield f"{name}, one image, CUDA graph", partial(run, name, 1, False, "eager", graph=True)


def _backbone(
    setup: Setup,
    name: str,
    batch: int,
    train: bool,
    backend: Backend,
    compiled: bool = False,
    graph: bool = False,
) -> Row:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = make_backbone(setup, name).to(setup.device, memory_format=torch.channels_last)
    size = 32 if setup.trial else 224
    x = torch.randn(batch, 3, size, size, device=setup.device).contiguous(memory_format=torch.channels_last)
    if compiled:
        compile_blocks(setup, model)
    with use_backend(backend):
        step = training_step(setup, model, x) if train else _inference(model, x)
        if graph and setup.device.type == "cuda":
            step = _captured(step)
        seconds = setup.seconds(step)
        return {"images/s": batch / seconds, "ms": 1000 * seconds, "peak MiB": setup.peak_mib(step)}


def compile_blocks(setup: Setup, model: Any) -> None:
    """Each block by itself: alike blocks share their code, and compiling takes seconds."""
    torch._dynamo.config.recompile_limit = 64
    blocks = model.blocks if hasattr(model, "blocks") else [b for s in model.stages for b in s.blocks]
    for block in blocks:
        block.compile(backend=setup.compiler)


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


def _captured(step: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph: one launch for all kernels."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# Latents of 32², 64² and 128²: 256, 1,024 and 4,096 tokens.
LATENTS = {32: 32, 64: 16, 128: 4}


def generators(setup: Setup) -> Iterator[Case]:
    """Seconds of a velocity evaluation, bfloat16, and of sampling an image."""
    run = partial(_velocity, setup)
    for size in (8,) if setup.trial else LATENTS:
        for compiled in (False, True):
            for family, backend in (("", "eager"), ("atconv_", "eager"), ("atconv_", "triton")):
                name = f"sit_{family}xl_2"
                label = f"{name}, latent {size}², {backend}{', compiled' if compiled else ''}"
                yield label, partial(run, name, size, backend, compiled)
    for family, backend in (("", "eager"), ("atconv_", "eager"), ("atconv_", "triton")):
        yield (
            f"sit_{family}xl_2, one image in 50 steps, {backend}",
            partial(_sampling, setup, f"sit_{family}xl_2", backend),
        )
    for size in () if setup.trial else LATENTS:
        for family, backend in (("", "eager"), ("atconv_", "eager"), ("atconv_", "triton")):
            name = f"sit_{family}b_2"
            yield f"{name}, latent {size}², {backend}", partial(run, name, size, backend, False)


def _sit(setup: Setup, name: str) -> Any:
    from atconv.models.sit import create_sit  # diffusers is not everywhere

    small: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2} if setup.trial else {}
    torch.manual_seed(0)
    model = create_sit(name, **small).eval()
    for parameter in model.parameters():  # no layer is left at its initial zeros
        nn.init.normal_(parameter, std=0.02)
    return nn.Module.to(model, setup.device, torch.bfloat16)


def _velocity(setup: Setup, name: str, size: int, backend: Backend, compiled: bool) -> Row:
    torch.compiler.reset()
    batch = LATENTS.get(size, 1)
    model = _sit(setup, name)
    if compiled:
        compile_blocks(setup, model)
    x = torch.randn(batch, 4, size, size, device=setup.device, dtype=torch.bfloat16)
    t, labels = (
        torch.rand(batch, device=setup.device),
        torch.zeros(batch, dtype=torch.long, device=setup.device),
    )
    with use_backend(backend), torch.inference_mode():
        step = partial(model, x, t, labels)
        seconds = setup.seconds(step)
        return {"batch": batch, "ms": 1000 * seconds, "ms a sample": 1000 * seconds / batch}


def _sampling(setup: Setup, name: str, backend: Backend) -> Row:
    from atconv.diffusion.pipeline import SiTPipeline
    from atconv.diffusion.schedulers import ODEScheduler

    pipeline = SiTPipeline(_sit(setup, name), ODEScheduler(method="euler"))
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"class_labels": [0], "guidance_scale": 4.0, "output_type": "latent"}
    options |= {"num_inference_steps": 2, "height": 8, "width": 8} if setup.trial else {}
    with use_backend(backend):
        return {"seconds": setup.seconds(lambda: pipeline(**options))}
