"""A file computes what the model computes, at sizes and batches that it was not traced with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atconv import ATConv2d, deploy, functional
from atconv.models.attnet import attnet_t2
from atconv.ops.context_pooling import as_product
from atconv.ops.dynamic_depthwise_conv import shifted
from support.helpers import assert_close, randomize, tiny_attnet

# Batch, height and width. A 1×1 map and N < n are among them.
MIXER_SIZES = [(2, 6, 7), (1, 1, 1), (5, 2, 2), (3, 11, 4), (1, 2, 3)]
ATTNET_SIZES = [(2, 64, 96), (1, 64, 33), (3, 70, 45), (5, 40, 128)]
# torch.export assumes that no map behind a strided convolution is one position high or wide; ONNX does not.
SMALL_ATTNET_SIZES = [(1, 32, 32), (3, 8, 70), (1, 1, 1)]

Call = Callable[[Tensor], Tensor]
FORMATS: dict[str, tuple[Any, Any]] = {
    "torch": (deploy.export_torch, deploy.open_torch),
    "onnx": (deploy.export_onnx, deploy.open_onnx),
    "aoti": (deploy.export_aoti, deploy.open_aoti),
}
# Compiling takes a minute.
FAST_FORMATS = ["torch", "onnx"]
ALL_FORMATS = [*FAST_FORMATS, pytest.param("aoti", marks=pytest.mark.slow)]


def mixer() -> ATConv2d:
    return randomize(ATConv2d(8)).eval()


def attnet(**options: Any) -> nn.Module:
    return tiny_attnet(glu_norm=True, ls_init_value=0.5, **options)


def folded() -> nn.Module:
    return deploy.fold(attnet())


def short_attnet() -> nn.Module:
    """Blocks of the largest and the smallest map: each takes seconds to export."""
    return attnet(depths=(1, 0, 0, 1))


def through_file(
    format: str, model: nn.Module, images: Tensor, folder: Path, sizes: deploy.Sizes = "any"
) -> Call:
    write, read = FORMATS[format]
    return read(write(model, folder / "new" / f"{format}.pt2", images, sizes))


@pytest.fixture(scope="module", params=FAST_FORMATS)
def exported_mixer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Call:
    return through_file(request.param, mixer(), torch.randn(2, 8, 6, 7), tmp_path_factory.mktemp("mixer"))


@pytest.fixture(scope="module", params=ALL_FORMATS)
def exported_attnet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Call]:
    images = torch.randn(2, 3, 64, 96)
    torch.manual_seed(0)
    return request.param, through_file(
        request.param, deploy.fold(short_attnet()), images, tmp_path_factory.mktemp("attnet")
    )


@pytest.mark.parametrize(("batch", "height", "width"), MIXER_SIZES)
@torch.no_grad()
def test_an_exported_mixer_accepts_any_size(
    exported_mixer: Call, batch: int, height: int, width: int
) -> None:
    x = torch.randn(batch, 8, height, width)
    assert_close(exported_mixer(x), mixer()(x), 1e-5)


@pytest.mark.parametrize(("batch", "height", "width"), ATTNET_SIZES + SMALL_ATTNET_SIZES)
@torch.no_grad()
def test_an_exported_attnet_accepts_any_size(
    exported_attnet: tuple[str, Call], batch: int, height: int, width: int
) -> None:
    format, call = exported_attnet
    if format != "onnx" and (batch, height, width) in SMALL_ATTNET_SIZES:
        pytest.skip("torch.export accepts larger images only")
    x = torch.randn(batch, 3, height, width)
    model = short_attnet()
    assert deploy.largest_error(call, model, [(batch, 3, height, width)]) <= 1e-5
    assert_close(call(x), model(x), 1e-5)


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
@torch.no_grad()
@pytest.mark.slow
def test_fixed_sizes_are_fixed(format: str, tmp_path: Path) -> None:
    model = tiny_attnet()
    for sizes, accepted, rejected in (
        ("fixed", (2, 3, 64, 64), (3, 3, 64, 64)),
        ("batch", (3, 3, 64, 64), (2, 3, 96, 64)),
    ):
        call = through_file(format, model, torch.randn(2, 3, 64, 64), tmp_path, sizes)  # type: ignore[arg-type]
        assert deploy.largest_error(call, model, [accepted]) <= 1e-5  # type: ignore[list-item]
        with pytest.raises(Exception):  # noqa: B017, PT011  (each runtime has its own types)
            call(torch.randn(rejected))


@torch.no_grad()
def test_an_older_opset_has_no_gelu(tmp_path: Path) -> None:
    model = nn.Sequential(randomize(ATConv2d(3)), nn.GELU()).eval()
    path = deploy.export_onnx(model, tmp_path / "old.onnx", torch.randn(2, 3, 9, 8), opset=17)
    graph = onnx.load(path)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]
    assert not [node for node in graph.graph.node if node.op_type == "Gelu"]
    read = {name for node in graph.graph.node for name in node.input}
    assert {tensor.name for tensor in graph.graph.initializer} <= read
    assert deploy.largest_error(deploy.open_onnx(path), model, [(3, 3, 19, 12)]) <= 1e-4


@pytest.mark.slow
def test_a_large_network_converts_to_onnx(tmp_path: Path) -> None:
    model = attnet_t2().eval()
    path = deploy.export_onnx(deploy.fold(model), tmp_path / "t2.onnx", torch.randn(2, 3, 64, 96))
    assert deploy.largest_error(deploy.open_onnx(path), model, [(1, 3, 64, 64), (3, 3, 70, 45)]) <= 1e-5


@pytest.mark.slow
def test_a_compiled_package_runs_without_this_package(tmp_path: Path) -> None:
    model, images = folded(), torch.randn(3, 3, 40, 70)
    package = deploy.export_aoti(model, tmp_path / "model.pt2", torch.randn(2, 3, 64, 96))
    save_file({"images": images}, tmp_path / "images.safetensors")
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "call = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "logits = call(load_file(sys.argv[2])['images'])\n"
        "assert not any(name.startswith(('atconv', 'timm')) for name in sys.modules)\n"
        "save_file({'logits': logits}, sys.argv[3])"
    )
    files = [str(package), str(tmp_path / "images.safetensors"), str(tmp_path / "logits.safetensors")]
    subprocess.run([sys.executable, "-c", script, *files], check=True)
    with torch.no_grad():
        assert_close(load_file(tmp_path / "logits.safetensors")["logits"], model(images), 1e-5)
        channels_last = images.to(memory_format=torch.channels_last)  # the package itself would misread it
        assert_close(deploy.open_aoti(package)(channels_last), model(images), 1e-5)


def test_largest_error_measures_a_known_error() -> None:
    model = tiny_attnet()
    with torch.no_grad():
        expected = model(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    wrong = deploy.largest_error(lambda x: model(x) + 0.5, model, [(1, 3, 32, 32)])
    assert wrong == pytest.approx(0.5 / float(expected.abs().max()), rel=1e-3)


def test_models_that_cannot_be_exported_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval mode. Call model.eval\(\)"):
        deploy.export_onnx(tiny_attnet().train(), tmp_path / "m.onnx", torch.randn(2, 3, 64, 96))
    with pytest.raises(ValueError, match="2 images or more"):
        deploy.export_torch(tiny_attnet(), tmp_path / "m.pt2", torch.randn(1, 3, 64, 96))

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 3, 64, 64).mean((2, 3))

    with pytest.raises(ValueError, match="Square does not export for sizes='any'"):
        deploy.export_onnx(Square().eval(), tmp_path / "m.onnx", torch.randn(2, 3, 64, 64))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_int8_is_close_to_float32(tmp_path: Path) -> None:
    model = folded()
    images = torch.randn(16, 3, 64, 96)
    path = deploy.export_onnx(model, tmp_path / "model.onnx", images[:2])
    small = deploy.quantize_onnx(path, tmp_path / "int8.onnx", images.split(4))
    call = deploy.open_onnx(small)
    with torch.no_grad():
        assert_close(call(images), model(images), 0.1)
        assert_close(call(images[:3, :, :40, :50]), model(images[:3, :, :40, :50]), 0.2)
        assert (call(images) - model(images)).abs().max() > 1e-4  # it is another arithmetic
    assert small.read_bytes().count(b"QuantizeLinear") > 10
    with pytest.raises(ValueError, match="int8 takes images to calibrate on"):
        deploy.quantize_onnx(path, tmp_path / "none.onnx", [])


@pytest.mark.parametrize("kwargs", [{"kernel_size": 5}, {"routing": False}, {"inhibition": False}])
@torch.no_grad()
def test_every_form_of_the_mixer_exports(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = randomize(ATConv2d(8, **kwargs)).eval()
    call = through_file("torch", model, torch.randn(2, 8, 6, 7), tmp_path)
    for batch, height, width in MIXER_SIZES:
        x = torch.randn(batch, 8, height, width)
        assert_close(call(x), model(x), 1e-5)


def test_another_shape_is_an_infinite_error() -> None:
    def first(images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 2)

    assert deploy.largest_error(first, lambda images: torch.zeros(3, 2), [(3, 2, 4, 4)]) == torch.inf


def test_an_output_that_is_not_finite_is_an_infinite_error() -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * torch.nan

    assert deploy.largest_error(broken, lambda images: images.mean((2, 3)), [(2, 3, 4, 4)]) == torch.inf


# Exports use other forms of two steps, which must be the same functions.


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 12), width=st.integers(1, 12), size=st.integers(1, 7), grid=st.booleans())
def test_exportable_pooling_equals_pooling(height: int, width: int, size: int, grid: bool) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    cells = [size, size] if grid else None
    expected = functional.pool_context(x, size**2, cells)
    assert_close(as_product(x, size**2, cells), expected, 1e-12)


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
    expected = functional.dynamic_depthwise_conv(x, kernel)
    assert_close(shifted(x, kernel, [1, 1], [kernel_size // 2] * 2, [1, 1]), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exportable_pooling_keeps_half_precision_accurate(dtype: torch.dtype) -> None:
    x = torch.rand(1, 2, 128, 128).to(dtype)
    pooled = as_product(x, 9, None)
    assert pooled.dtype == dtype
    assert_close(pooled, functional.pool_context(x.double(), 9), 4e-3)


@pytest.mark.parametrize(("size", "bins"), [(800, 9), (300, 1)])
@torch.no_grad()
def test_bins_of_more_positions_than_half_precision_counts(size: int, bins: int) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.pool_context(x, bins)

    x = (1 + torch.rand(1, 2, size, size)).half()
    expected = functional.pool_context(x.double(), bins)
    compiled = torch.compile(Pool(), backend="eager", dynamic=True)
    dims = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Pool(), (x[..., 1:].contiguous(),), dynamic_shapes=dims)
    for pool in (compiled, program.module()):
        assert pool(x).dtype == torch.float16
        assert_close(pool(x), expected, 1e-3)
    with torch.autocast("cpu", torch.float16):
        assert_close(compiled(x.float()), expected, 1e-5)
