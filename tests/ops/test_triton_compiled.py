"""What Triton's compiler makes of the kernels, for a GPU that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

STRIPS = dict(BLOCK_W=16, BLOCK_C=32, STAGES=3, FLIP=False, INHIBIT=True, BIAS=True)
ROWS = dict(COUNT=341, EPS=1e-6, BLOCK_R=4, BLOCK_K=512)
JOBS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "convolve": ("triton_rows", "_convolve_kernel", "*fp32", STRIPS),
    "convolve without bias": ("triton_rows", "_convolve_kernel", "*fp32", STRIPS | {"BIAS": False}),
    "correlate": ("triton_rows", "_correlate_kernel", "*fp32", STRIPS),
    "gate, 344": ("triton_channels", "_gate_kernel", "*bf16", ROWS | {"K": 344}),
    "gate, 341": ("triton_channels", "_gate_kernel", "*bf16", ROWS | {"K": 341}),
    "gradients of gate, 344": ("triton_channels", "_gate_gradients_kernel", "*bf16", ROWS | {"K": 344}),
    "gradients of norm, 288": ("triton_channels", "_norm_gradients_kernel", "*bf16", ROWS | {"K": 288}),
}
"""Module, kernel, what its tensors hold, and its constants."""

CODE = """
import importlib, json, sys
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

def build(module, name, pointer, options):
    kernel = getattr(importlib.import_module(f"atconv.ops.{module}"), name)
    names, options = kernel.arg_names, options | {"TYPE": tl.float32}
    options = {key: value for key, value in options.items() if key in names}
    # Strides have two letters, sizes are capitals. Tensors begin at multiples of 16 bytes.
    tensors = [key for key in names if key.islower() and len(key) != 2]
    kinds = {key: pointer if key in tensors else "i32" for key in names} | dict.fromkeys(options, "constexpr")
    constants = {(names.index(key),): value for key, value in options.items()}
    aligned = {(names.index(key),): [["tt.divisibility", 16]] for key in tensors}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=aligned)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm
    loops = [line for line in made["ttir"].splitlines() if "scf.for" in line]
    carried = [loop.split("->")[0].count(" = %") - 1 for loop in loops]  # less the loop's own counter
    return {"carried": carried, "loads of 16 bytes": made["ptx"].count("ld.global.v4.b32")}

print(json.dumps({key: build(*job) for key, job in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """What loops carry from turn to turn, and how memory is read, by the names of `JOBS`."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, json.dumps(JOBS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("kernel", "carried"),
    [
        ("convolve", 2),
        ("convolve without bias", 2),
        ("correlate", 9 + 2),
        ("gradients of norm, 288", 2),
    ],
)
def test_what_a_kernel_carries_from_row_to_row(
    kernel: str, carried: int, compiled: dict[str, dict[str, Any]]
) -> None:
    """Two rows, and sums: Triton 3.6 takes a row for constant where it starts as the other does."""
    assert compiled[kernel]["carried"] == [carried]


@pytest.mark.parametrize(
    ("kernel", "loads"), [("gate, 344", 2 * 2), ("gate, 341", 0), ("gradients of gate, 344", 3 * 2)]
)
def test_rows_of_whole_vectors_are_read_by_16_bytes(
    kernel: str, loads: int, compiled: dict[str, dict[str, Any]]
) -> None:
    """And others value by value. 2,048 values of two bytes, by 128 threads: two loads from each tensor."""
    assert compiled[kernel]["loads of 16 bytes"] == loads
