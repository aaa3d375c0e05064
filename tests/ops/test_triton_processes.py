"""Training in two processes on the Triton kernels, interpreted: steps are those of PyTorch's operators."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from atconv.ops.backend import Backend, use_backend
from support.helpers import assert_close, tiny_attnet

pytest.importorskip("triton")

from atconv.ops import triton_conv

STEPS = 2


def replicated(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in model.children():
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(model: nn.Module, wrap: Callable[[nn.Module], nn.Module], backend: Backend) -> list[Tensor]:
    """Weights after some steps on images of this process, and the losses."""
    model = wrap(copy.deepcopy(model).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    with use_backend(backend):
        for _ in range(STEPS):
            images = torch.randn(2, 3, 24, 16, generator=generator, dtype=torch.float64)
            loss = F.cross_entropy(model(images.to(memory_format=torch.channels_last)), torch.tensor([0, 3]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [torch.stack(losses), *(weight.detach() for weight in weights)]


def _compare(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    launched: list[str] = []
    launch = triton_conv._launch

    def counted(x: Tensor, rows: int, columns: int, program: str) -> Any:
        launched.append(program)
        return launch(x, rows, columns, program)

    triton_conv._launch = counted
    torch.manual_seed(0)
    model = tiny_attnet(depths=(1, 1, 0, 0), dims=(4, 6, 6, 6)).double()
    results = {}
    for wrap in (replicated, sharded):
        expected = trained(model, wrap, "eager")
        assert launched == []
        results[wrap] = trained(model, wrap, "triton")
        assert len(launched) == 12 * STEPS, "two convolutions in each of two blocks"
        launched.clear()
        for actual, right, start in zip(results[wrap][1:], expected[1:], model.parameters(), strict=True):
            assert_close(actual, right, 1e-10)
            assert not torch.equal(actual, start)
        assert_close(results[wrap][0], expected[0], 1e-10)
    other = [torch.empty_like(results[replicated][0]) for _ in range(2)]
    dist.all_gather(other, results[replicated][0])
    assert not torch.equal(*other), "processes have images of their own"
    for one, two in zip(results[replicated], results[sharded], strict=True):
        assert_close(one, two, 1e-10)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are not interpreted")
def test_steps_on_the_kernels_are_those_of_pytorchs_operators() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.start_processes(_compare, (port,), nprocs=2, start_method="forkserver")
