"""What Triton's compiler makes of the kernels, for a GPU that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from atconv.ops import triton_rows

kernel = getattr(triton_rows, sys.argv[1])
block = dict(BLOCK_W=16, BLOCK_C=32, STAGES=3, FLIP=False, INHIBIT=True, BIAS=True)
block = {name: value for name, value in block.items() if name in kernel.arg_names}
pointers = ("x", "g", "k", "s", "b", "y", "out")
kinds = {name: "*fp32" if name in pointers else "i32" for name in kernel.arg_names}
kinds |= dict.fromkeys(block, "constexpr")
values = {(kernel.arg_names.index(name),): value for name, value in block.items()}
source = ASTSource(fn=kernel, signature=kinds, constexprs=values)
made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
(loop,) = [line for line in made.asm["ttir"].splitlines() if "scf.for" in line]
print(loop.split("->")[0].count(" = %") - 1)  # less the loop's own counter
"""


@pytest.mark.parametrize(("kernel", "carried"), [("_convolve_kernel", 2), ("_correlate_kernel", 9 + 2)])
def test_what_a_kernel_carries_from_row_to_row(kernel: str, carried: int) -> None:
    """Two rows, and nine sums: Triton 3.6 takes a row for constant where it starts as the other does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, kernel], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == str(carried), done.stderr
