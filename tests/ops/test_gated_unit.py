"""Hidden maps with channels of zeros, up to a multiple of 8, in Triton's interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atconv.models.attnet import ConvGLU
from atconv.ops import gated_unit
from atconv.ops.backend import Backend, use_backend
from support.helpers import assert_close, randomize

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Channels that convolutions made."""
    made: list[int] = []
    convolve = gated_unit.pointwise_conv

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(len(weight))
        return convolve(x, weight, bias)

    monkeypatch.setattr(gated_unit, "pointwise_conv", counted)
    return made


def results(backend: Backend, glu: ConvGLU, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    with use_backend(backend):
        y = glu(x)
        return [y, *torch.autograd.grad(y, [x, *glu.parameters()], y.detach().cos())]


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_a_widened_unit_is_the_same_function(norm: bool, conv: bool, widths: list[int]) -> None:
    glu = randomize(ConvGLU(5, 4, norm, conv)).to(DEVICE).double()  # 13 hidden channels
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, device=DEVICE)
    for layout in (torch.channels_last, torch.contiguous_format):
        one = x.contiguous(memory_format=layout)
        expected = results("eager", glu, one)
        assert widths == []
        actual = results("triton", glu, one)
        assert widths[:2] == [16, 16]
        widths.clear()
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, 1e-13)
        for gradient, parameter in zip(actual[2:], glu.parameters(), strict=True):
            assert gradient.stride() == parameter.stride()  # DistributedDataParallel warns of others


def test_whole_rows_and_layers_that_something_acts_on_are_not_widened(widths: list[int]) -> None:
    x = torch.randn(2, 6, 3, 4, device=DEVICE)
    whole, hooked = (randomize(ConvGLU(6, ratio, True)).to(DEVICE) for ratio in (4, 3))
    assert (whole.hidden, hooked.hidden) == (16, 12)
    hooked.value_proj.register_forward_hook(lambda module, args, output: output)
    for glu in (whole, hooked):
        assert_close(results("triton", glu, x)[0], results("eager", glu, x)[0], 1e-5)
    assert widths == []


@pytest.mark.slow
@pytest.mark.usefixtures("reset_compiler")
def test_a_compiled_unit_is_widened_in_its_graph(widths: list[int]) -> None:
    glu = randomize(ConvGLU(5, 4, True)).to(DEVICE).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, device=DEVICE)
    expected = results("eager", glu, x)
    glu.compile(fullgraph=True, backend="aot_eager")
    for a, e in zip(results("triton", glu, x), expected, strict=True):
        assert_close(a, e, 1e-13)
    assert widths[:2] == [16, 16]
