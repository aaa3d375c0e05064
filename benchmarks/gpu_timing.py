"""Time and memory of calls on a GPU, and on the CPU where the script is only tried."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Row", "Setup", "measured"]

Row = dict[str, Any]

_TIMED = 0.15  # seconds of repeated calls
_CACHE = 2**30  # bytes to write between calls: more than the cache holds
_AHEAD = 2_000_000  # cycles, a millisecond, in which the GPU waits for all launches of a call


@dataclass(frozen=True)
class Setup:
    """Where to measure. A trial runs every line in little time: its numbers mean nothing."""

    device: torch.device
    trial: bool

    def seconds(self, call: Callable[[], object], cold: bool = False) -> float:
        """Median seconds of a call after warm-up. `cold`: of what the GPU does alone, with an empty
        cache. Else launches count, where they take longer."""
        for _ in range(1 if self.trial else 3):
            call()
        if self.device.type != "cuda":
            return statistics.median(_wall_seconds(call) for _ in range(2))
        torch.cuda.synchronize()
        repeats = min(max(int(_TIMED / max(_wall_seconds(call), 1e-6)), 7), 50)
        cache = torch.empty(_CACHE if cold else 0, dtype=torch.uint8, device=self.device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, stop in events:
            cache.zero_()
            if cold:
                torch.cuda._sleep(_AHEAD)
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1000

    def peak_mib(self, call: Callable[[], object]) -> float:
        """Most memory in use during a call, weights included."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    def free_memory(self) -> None:
        """Let go of what earlier rows have left in memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """The same as a CUDA graph: one launch for all kernels."""
        if self.device.type != "cuda":
            return call
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def copy_bandwidth(self) -> float:
        """GB/s of a large copy on the device, bytes read and written."""
        source = torch.empty(2**12 if self.trial else 2**30, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source)) / 1e9

    @property
    def compiler(self) -> str:
        """The backend of torch.compile."""
        return "aot_eager" if self.trial else "inductor"


def _wall_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(row: Row) -> str:
    """One line of a row: its values with three digits."""
    values = {key: value for key, value in row.items() if key not in ("code", "machine")}
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
