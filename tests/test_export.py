from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atconv import ATConv2d, functional
from helpers import assert_close, randomise, tiny_attnet

DYNAMIC = torch.export.Dim.DYNAMIC
# Batch, height and width; graphs are traced at the first. A 1×1 map and N < n are among them.
MIXER_SIZES = [(2, 6, 7), (1, 1, 1), (5, 2, 2), (3, 11, 4), (1, 2, 3)]
ATTNET_SIZES = [(2, 64, 96), (1, 64, 33), (3, 70, 45), (5, 40, 128)]
# torch.export assumes that no map behind a strided convolution is one position high or wide; ONNX does not.
SMALL_ATTNET_SIZES = [(1, 32, 32), (3, 8, 70), (1, 1, 1)]

Call = Callable[[Tensor], Tensor]


def mixer() -> ATConv2d:
    return randomise(ATConv2d(8)).eval()


def exported(model: nn.Module, x: Tensor) -> Call:
    return torch.export.export(model, (x,), dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)).module()


def onnx_session(model: nn.Module, x: Tensor, path: Path) -> Call:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    dynamic_shapes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # its waiting threads would take the cores from torch
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.fixture(scope="module", params=["torch", "onnx"])
def exported_mixer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Call:
    x = torch.randn(2, 8, 6, 7)
    if request.param == "torch":
        return exported(mixer(), x)
    return onnx_session(mixer(), x, tmp_path_factory.mktemp("onnx") / "mixer.onnx")


@pytest.fixture(scope="module")
def onnx_attnet(tmp_path_factory: pytest.TempPathFactory) -> Call:
    path = tmp_path_factory.mktemp("onnx") / "attnet.onnx"
    return onnx_session(tiny_attnet(), torch.randn(2, 3, 64, 96), path)


@pytest.fixture(scope="module")
def torch_attnet() -> Call:
    return exported(tiny_attnet(), torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize(("batch", "height", "width"), MIXER_SIZES)
@torch.no_grad()
def test_exported_mixer_equals_eager_at_any_size(
    exported_mixer: Call, batch: int, height: int, width: int
) -> None:
    x = torch.randn(batch, 8, height, width)
    assert_close(exported_mixer(x), mixer()(x), 1e-5)


@pytest.mark.parametrize(("batch", "height", "width"), ATTNET_SIZES)
@torch.no_grad()
def test_exported_attnet_equals_eager_at_any_size(
    torch_attnet: Call, batch: int, height: int, width: int
) -> None:
    x = torch.randn(batch, 3, height, width)
    assert_close(torch_attnet(x), tiny_attnet()(x), 1e-5)


@pytest.mark.parametrize(("batch", "height", "width"), ATTNET_SIZES + SMALL_ATTNET_SIZES)
@torch.no_grad()
def test_onnx_attnet_equals_eager_at_any_size(onnx_attnet: Call, batch: int, height: int, width: int) -> None:
    x = torch.randn(batch, 3, height, width)
    assert_close(onnx_attnet(x), tiny_attnet()(x), 1e-5)


@pytest.mark.parametrize("kwargs", [{"kernel_size": 5}, {"routing": False}, {"inhibition": False}])
@torch.no_grad()
def test_every_form_of_the_mixer_exports(kwargs: dict[str, int]) -> None:
    model = randomise(ATConv2d(8, **kwargs)).eval()
    call = exported(model, torch.randn(2, 8, 6, 7))
    for batch, height, width in MIXER_SIZES:
        x = torch.randn(batch, 8, height, width)
        assert_close(call(x), model(x), 1e-5)


# An export takes other forms of two steps; these are the same functions.


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 12), width=st.integers(1, 12), bins=st.integers(1, 49))
def test_exportable_pooling_equals_pooling(height: int, width: int, bins: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    assert_close(functional._bin_means(x.flatten(2), bins, 2), functional.pool_context(x, bins), 1e-12)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
)
def test_shifted_products_equal_convolution(batch: int, height: int, width: int, kernel_size: int) -> None:
    x = torch.randn(batch, 4, height, width, dtype=torch.float64)
    kernel = torch.randn(batch, 4, kernel_size, kernel_size, dtype=torch.float64)
    expected = functional.dynamic_depthwise_conv2d(x, kernel)
    assert_close(functional._shifted_products(x, kernel), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exportable_pooling_keeps_half_precision_accurate(dtype: torch.dtype) -> None:
    x = torch.rand(1, 2, 128, 128).to(dtype)
    pooled = functional._bin_means(x.flatten(2), 9, 2)
    assert pooled.dtype == dtype
    assert_close(pooled, functional.pool_context(x.double(), 9), 4e-3)
