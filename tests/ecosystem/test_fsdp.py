"""FSDP2 on single layers, in two processes that hold half of every weight each."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from support.helpers import assert_close
from support.networks import NETWORKS, layers, network


def _compare(rank: int, port: int) -> None:
    """Outputs and gradients of the sharded network are those of one in this process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in NETWORKS:
        torch.manual_seed(0)
        alone, inputs = network(name)
        torch.manual_seed(0)
        sharded, _ = network(name)
        for layer in layers(sharded).values():
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        expected, output = alone(*inputs), sharded(*inputs)
        assert_close(output, expected, 1e-5)
        for result in (expected, output):
            result.square().sum().backward()
        for (key, parameter), single in zip(sharded.named_parameters(), alone.parameters(), strict=True):
            assert isinstance(parameter, DTensor), key
            assert isinstance(parameter.grad, DTensor), (name, key)
            assert single.grad is not None
            assert_close(parameter.grad.full_tensor(), single.grad, 1e-4)
    dist.destroy_process_group()


def test_sharded_layers_compute_and_learn_as_alone() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.start_processes(_compare, (port,), nprocs=2, start_method="forkserver")
