from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atconv import ATConv2d, ATConvTokens, functional
from atconv.models.release import to_attnet
from support.helpers import WEIGHTS, assert_close, randomize, reference, under

MODULES = [ATConv2d, ATConvTokens]
CASES = range(len(reference("atconv")[1]["cases"]))


def mixer_of(module: type[nn.Module], dim: int = 8, kernel_size: int = 3, **kwargs: bool) -> nn.Module:
    return randomize(module(dim, kernel_size=kernel_size, **kwargs))


def random_input(
    mixer: nn.Module, batch: int = 2, height: int = 5, width: int = 5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A map for ATConv2d, the same map as tokens for ATConvTokens."""
    x = torch.randn(batch, mixer.in_channels, height, width, dtype=dtype)
    return x if isinstance(mixer, ATConv2d) else to_tokens(x)


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


# Reference numbers of the release.


class Run(NamedTuple):
    output: Tensor
    kernels: Tensor
    grad_input: Tensor
    grads: dict[str, Tensor]


def release_weights(case: int, kind: str) -> dict[str, Tensor]:
    """`kind` ("weights" or "grad") of a case under our names."""
    release = under(f"{case}.{kind}.", reference("atconv")[0])
    ours = to_attnet({f"stages.0.0.token_mixer.{name}": tensor for name, tensor in release.items()})
    return under("stages.0.blocks.0.token_mixer.", ours)


def run_map(case: int, memory_format: torch.memory_format) -> Run:
    config, tensors = reference("atconv")[1]["cases"][case], under(f"{case}.", reference("atconv")[0])
    mixer = ATConv2d(config["dim"], kernel_size=config["kernel_size"])
    mixer.load_state_dict(release_weights(case, "weights"))
    x = tensors["input"].clone(memory_format=memory_format).requires_grad_()
    output = mixer(x)
    output.backward(tensors["cotangent"])
    return Run(output, mixer.kernels(x), x.grad, {name: p.grad for name, p in mixer.named_parameters()})


def run_tokens(case: int) -> Run:
    config, tensors = reference("atconv")[1]["cases"][case], under(f"{case}.", reference("atconv")[0])
    mixer, grid = ATConvTokens(config["dim"], config["kernel_size"]), tensors["input"].shape[2:]
    weights = release_weights(case, "weights")
    mixer.load_state_dict({name: w.flatten(1) if w.ndim > 2 else w for name, w in weights.items()})
    x = tensors["input"].clone().requires_grad_()
    output = mixer(to_tokens(x), tuple(grid)).transpose(1, 2).unflatten(2, grid)
    output.backward(tensors["cotangent"])
    return Run(output, mixer.kernels(x), x.grad, {name: p.grad for name, p in mixer.named_parameters()})


def run_function(case: int) -> Run:
    tensors, loaded = under(f"{case}.", reference("atconv")[0]), release_weights(case, "weights")
    weights = {name: loaded[name].clone().requires_grad_() for name in WEIGHTS}
    x = tensors["input"].clone().requires_grad_()
    output = functional.atconv(x, *weights.values())
    output.backward(tensors["cotangent"])
    kernels = functional.context_to_kernel(
        functional.pool_context(x, weights["kernel_gen.weight"].shape[0]), *list(weights.values())[:4]
    )
    kernels = functional.lateral_inhibition(kernels, weights["alpha"])
    return Run(output, kernels, x.grad, {name: weight.grad for name, weight in weights.items()})


RUNS = {
    "contiguous": lambda case: run_map(case, torch.contiguous_format),
    "channels_last": lambda case: run_map(case, torch.channels_last),
    "tokens": run_tokens,
    "function": run_function,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", RUNS)
def test_reference_outputs_kernels_and_gradients(form: str, case: int) -> None:
    tensors, run = under(f"{case}.", reference("atconv")[0]), RUNS[form](case)
    assert_close(run.output, tensors["output"], 1e-5)
    assert_close(run.kernels, tensors["kernels"], 1e-5)
    assert_close(run.grad_input, tensors["grad_input"], 1e-5)
    expected = release_weights(case, "grad")
    assert run.grads.keys() == expected.keys()
    for name, grad in run.grads.items():
        assert_close(grad, expected[name].reshape(grad.shape), 1e-5)


# Precision.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("size", [7, 32, 128])
@pytest.mark.parametrize("module", MODULES)
def test_half_precision_stays_close(
    module: type[nn.Module], size: int, dtype: torch.dtype, tolerance: float
) -> None:
    mixer = mixer_of(module, 16).double()
    x = random_input(mixer, 2, size, size, torch.float64)
    y = copy.deepcopy(mixer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert_close(y, mixer(x), tolerance)


@pytest.mark.parametrize("module", MODULES)
def test_autocast_trains(module: type[nn.Module]) -> None:
    mixer = mixer_of(module)
    x = random_input(mixer, 2, 14, 14).requires_grad_()
    cotangent = torch.randn_like(x)
    grads = torch.autograd.grad(mixer(x), [x, *mixer.parameters()], cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, mixer(x), 2e-2)
    lower = torch.autograd.grad(y, [x, *mixer.parameters()], cotangent.bfloat16())
    for actual, expected in zip(lower, grads, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, expected, 5e-2)


@pytest.mark.parametrize("grad_check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("routing", [True, False])
def test_gradients_and_their_gradients(grad_check: Callable[..., bool], routing: bool) -> None:
    mixer = mixer_of(ATConv2d, 2, routing=routing).double()
    names, parameters = zip(*mixer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    x = random_input(mixer, 2, 3, 3, torch.float64).requires_grad_()
    assert grad_check(call, (x, *parameters))


# Layouts, batches, copies, compilation.


@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("module", MODULES)
def test_empty_batch_passes_forward_and_backward(module: type[nn.Module], routing: bool) -> None:
    mixer = mixer_of(module, routing=routing)
    x = random_input(mixer, batch=0).requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(not p.grad.any() for p in mixer.parameters())


@pytest.mark.parametrize("module", MODULES)
def test_samples_do_not_mix(module: type[nn.Module]) -> None:
    mixer = mixer_of(module).double()
    x = random_input(mixer, 3, dtype=torch.float64)
    assert_close(mixer(x), torch.cat([mixer(sample[None]) for sample in x]), 1e-12)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.repeat_interleave(2, 1)[:, ::2],
        lambda x: x.repeat_interleave(3, -1)[..., 1::3],
        lambda x: x[:1].expand_as(x),
    ],
    ids=["transposed", "strided batch", "strided second axis", "strided last axis", "expanded"],
)
def test_views_equal_contiguous_input(module: type[nn.Module], view: Callable[[Tensor], Tensor]) -> None:
    mixer = mixer_of(module).double()
    x = view(random_input(mixer, 3, dtype=torch.float64))
    assert not x.is_contiguous() or x.stride()[0] == 0
    assert_close(mixer(x), mixer(x.contiguous()), 1e-12)


@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_in_gives_channels_last_out(batch: int, routing: bool) -> None:
    mixer = mixer_of(ATConv2d, routing=routing)
    x = random_input(mixer, batch, 5, 7)
    y = mixer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, mixer(x), 1e-6)


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1), (4, 4)])
def test_tokens_equal_the_map(grid: tuple[int, int]) -> None:
    mixer, on_map = mixer_of(ATConvTokens).double(), ATConv2d(8).double()
    on_map.load_state_dict({n: p.reshape(on_map.state_dict()[n].shape) for n, p in mixer.named_parameters()})
    x = torch.randn(2, 8, *grid, dtype=torch.float64)
    assert_close(mixer(to_tokens(x), grid), to_tokens(on_map(x)), 1e-12)


def test_square_grid_is_inferred() -> None:
    mixer = mixer_of(ATConvTokens)
    x = random_input(mixer, 2, 6, 6)
    assert torch.equal(mixer(x), mixer(x, grid_size=(6, 6)))


@pytest.mark.parametrize("module", MODULES)
def test_copies_compute_the_same_and_share_nothing(module: type[nn.Module]) -> None:
    mixer = mixer_of(module)
    x = random_input(mixer)
    expected = mixer(x)
    twin, loaded = copy.deepcopy(mixer), module(8)
    loaded.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("reset_compiler")
def test_compiled_without_graph_break_equals_eager(module: type[nn.Module]) -> None:
    mixer = mixer_of(module)
    x = random_input(mixer, 2, 6, 6)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    cotangent = torch.randn_like(x)
    assert_close(compiled(x), mixer(x), 1e-5)
    actual = torch.autograd.grad(compiled(x), list(mixer.parameters()), cotangent)
    expected = torch.autograd.grad(mixer(x), list(mixer.parameters()), cotangent)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.usefixtures("reset_compiler")
@torch.no_grad()
def test_one_trace_serves_all_shapes() -> None:
    mixer = mixer_of(ATConv2d)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(random_input(mixer, 2, 5, 6))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, height, width in [(2, 5, 6), (3, 9, 4), (4, 2, 3), (5, 16, 12)]:
            x = random_input(mixer, batch, height, width)
            assert_close(compiled(x), mixer(x), 1e-5)


@pytest.mark.usefixtures("reset_compiler")
@torch.no_grad()
def test_generated_code_equals_eager_at_several_shapes() -> None:
    mixer = mixer_of(ATConv2d)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    for batch, height, width in [(2, 5, 6), (3, 9, 4), (1, 2, 2)]:
        x = random_input(mixer, batch, height, width)
        assert_close(compiled(x), mixer(x), 1e-5)


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("module", MODULES)
def test_compiled_it_takes_an_empty_batch_between_others(module: type[nn.Module]) -> None:
    mixer = mixer_of(module)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for batch in (16, 0, 5, 0):
        x = random_input(mixer, batch).requires_grad_()
        y = compiled(x)
        y.sum().backward()
        assert_close(y, mixer(x), 1e-5)
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("module", MODULES)
def test_vmap_equals_a_loop(module: type[nn.Module]) -> None:
    mixer = mixer_of(module).double()
    x = torch.stack([random_input(mixer, dtype=torch.float64) for _ in range(3)])
    assert_close(torch.vmap(mixer)(x), torch.stack([mixer(one) for one in x]), 1e-12)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:FutureWarning")
def test_tokens_are_traced() -> None:
    mixer = mixer_of(ATConvTokens)
    traced = torch.jit.trace(mixer, (torch.randn(2, 36, 8),))
    x = torch.randn(3, 36, 8)
    assert_close(traced(x), mixer(x), 1e-5)
    assert torch.equal(torch.fx.symbolic_trace(mixer)(x), mixer(x))


@pytest.mark.parametrize("module", MODULES)
def test_exported_graphs_combine_conditions_by_logical_and(module: type[nn.Module]) -> None:
    """Core ML does not convert bitwise operations."""
    mixer = mixer_of(module)
    graph = torch.export.export(mixer, (random_input(mixer),)).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any("logical_and" in name for name in names)
    assert not any("bitwise" in name or "__and__" in name for name in names)


# Layers are called: hooks, adapters, offload and quantization act on calls.


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("layer", ["context_proj", "act", "kernel_gen", "value_proj", "proj"])
def test_a_hook_on_every_layer_is_called_and_can_change_the_output(
    module: type[nn.Module], layer: str
) -> None:
    mixer = mixer_of(module).double()
    x = random_input(mixer, dtype=torch.float64)
    expected, outputs = mixer(x), []
    handle = getattr(mixer, layer).register_forward_hook(lambda _, args, output: outputs.append(output))
    assert_close(mixer(x), expected, 1e-12)
    assert len(outputs) == 1
    handle.remove()
    getattr(mixer, layer).register_forward_hook(lambda _, args, output: output + 1)
    assert not torch.allclose(mixer(x), expected)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("layer", ["context_proj", "kernel_gen", "value_proj", "proj"])
def test_a_layer_may_be_replaced_by_one_that_has_no_weight(module: type[nn.Module], layer: str) -> None:
    """As adapters and quantized layers are."""

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    mixer = mixer_of(module).double()
    x = random_input(mixer, dtype=torch.float64)
    expected = mixer(x)
    setattr(mixer, layer, Wrapped(getattr(mixer, layer)))
    assert_close(mixer(x), expected, 1e-12)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("routing", [True, False])
def test_parameters_are_built_on_the_device_and_in_the_dtype(module: type[nn.Module], routing: bool) -> None:
    mixer = module(8, routing=routing, device="meta", dtype=torch.bfloat16)
    tensors = [*mixer.parameters(), *mixer.buffers()]
    assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in tensors)


# Class and register tokens.


@pytest.mark.parametrize("prefix", [1, 5])
def test_prefix_tokens_take_the_mean_of_their_values_and_of_the_routed_map(prefix: int) -> None:
    plain, mixer = mixer_of(ATConvTokens).double(), ATConvTokens(8, num_prefix_tokens=prefix).double()
    mixer.load_state_dict(plain.state_dict())
    x = torch.randn(2, prefix + 12, 8, dtype=torch.float64)
    y = mixer(x, (3, 4))
    assert_close(y[:, prefix:], plain(x[:, prefix:], (3, 4)), 1e-12)
    routed = torch.linalg.solve(plain.proj.weight, (y[:, prefix:] - plain.proj.bias).mT).mT
    values = torch.cat([plain.value_proj(x[:, :prefix]), routed], dim=1)
    assert_close(y[:, :prefix], plain.proj(values.mean(1, keepdim=True)).expand(-1, prefix, -1), 1e-9)


def test_the_square_behind_prefix_tokens_is_inferred() -> None:
    mixer = randomize(ATConvTokens(8, num_prefix_tokens=1))
    x = torch.randn(2, 17, 8)
    assert torch.equal(mixer(x), mixer(x, grid_size=(4, 4)))


def test_macs_count_prefix_tokens() -> None:
    mixer = ATConvTokens(8, num_prefix_tokens=3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(torch.randn(1, 3 + 35, 8), (7, 5))
    assert counter.get_total_flops() == 2 * mixer.macs(7, 5)


def test_a_negative_number_of_prefix_tokens_is_rejected() -> None:
    with pytest.raises(ValueError, match="num_prefix_tokens must be at least 0, got -1"):
        ATConvTokens(8, num_prefix_tokens=-1)


# The two ideas, each switched off, and what they cost.


@pytest.mark.parametrize("inhibition", [True, False])
def test_without_routing_it_is_a_static_depthwise_convolution(inhibition: bool) -> None:
    mixer = mixer_of(ATConv2d, routing=False, inhibition=inhibition).double()
    x, other = (random_input(mixer, 3, dtype=torch.float64) for _ in range(2))
    kernel = mixer.static_kernel
    if inhibition:
        kernel = kernel - torch.sigmoid(mixer.alpha)[:, None, None] * kernel.mean((1, 2), keepdim=True)
    assert torch.equal(mixer.kernels(x), mixer.kernels(other))
    assert_close(mixer.kernels(x), kernel[None], 1e-14)
    routed = F.conv2d(mixer.value_proj(x), kernel[:, None], padding=1, groups=8)
    assert_close(mixer(x), mixer.proj(routed), 1e-12)
    assert "context_proj.weight" not in mixer.state_dict()


def test_with_routing_kernels_follow_the_input() -> None:
    mixer = mixer_of(ATConv2d)
    x, other = mixer.kernels(random_input(mixer)), mixer.kernels(random_input(mixer))
    assert (x - other).norm() > 0.1 * x.norm()


@pytest.mark.parametrize("module", MODULES)
def test_without_inhibition_it_is_the_limit_of_alpha_to_minus_infinity(module: type[nn.Module]) -> None:
    without, full = mixer_of(module, inhibition=False).double(), module(8).double()
    assert "alpha" not in without.state_dict()
    x = random_input(without, dtype=torch.float64)
    full.load_state_dict({**without.state_dict(), "alpha": torch.full((8,), -100.0)})
    assert_close(without(x), full(x), 1e-12)
    nn.init.zeros_(full.alpha)
    assert (without(x) - full(x)).norm() > 0.01 * full(x).norm()


def test_inhibition_starts_at_one_half() -> None:
    assert torch.equal(torch.sigmoid(ATConv2d(8).alpha), torch.full((8,), 0.5))


@pytest.mark.parametrize("module", MODULES)
def test_without_bias_there_is_none_and_zero_maps_to_zero(module: type[nn.Module]) -> None:
    mixer = mixer_of(module, bias=False)
    assert not any(name.endswith("bias") for name in mixer.state_dict())
    assert not mixer(torch.zeros_like(random_input(mixer))).any()


def test_activation_stands_between_projection_and_generator() -> None:
    exact, rough = ATConv2d(8).double(), ATConv2d(8, act_layer=lambda: nn.GELU("tanh")).double()
    rough.load_state_dict(randomize(exact).state_dict())
    x = random_input(exact, dtype=torch.float64)
    difference = (rough.kernels(x) - exact.kernels(x)).norm() / exact.kernels(x).norm()
    assert 1e-7 < difference < 1e-2


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("dim", "kernel_size", "height", "width"), [(8, 3, 7, 5), (6, 5, 4, 4), (4, 7, 3, 9)]
)
def test_macs_follow_the_formula_and_torch(
    module: type[nn.Module], dim: int, kernel_size: int, height: int, width: int
) -> None:
    mixer = mixer_of(module, dim, kernel_size)
    n, positions = kernel_size**2, height * width
    formula = 2 * positions * dim**2 + n * dim**2 + n**2 * dim + n * positions * dim
    assert mixer.macs(height, width) == formula
    x = random_input(mixer, 1, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer(x) if module is ATConv2d else mixer(x, (height, width))
    assert counter.get_total_flops() == 2 * formula


def test_macs_without_routing_are_those_of_a_separable_convolution() -> None:
    assert ATConv2d(8, kernel_size=5, routing=False).macs(6, 7) == 42 * (2 * 8 * 8 + 25 * 8)


# Mistakes.


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kernel_size", [-3, 0, 2, 4])
def test_even_kernels_are_rejected(module: type[nn.Module], kernel_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"{module.__name__}: kernel_size must be odd.*got {kernel_size}.*use 3"
    ):
        module(8, kernel_size=kernel_size)


@pytest.mark.parametrize("module", MODULES)
def test_no_channels_are_rejected(module: type[nn.Module]) -> None:
    with pytest.raises(
        ValueError, match=f"{module.__name__}: in_channels and out_channels must be at least 1, got 0"
    ):
        module(0)


WRONG_SHAPES = st.lists(st.integers(1, 6), max_size=6)


@settings(deadline=None, max_examples=30)
@given(shape=WRONG_SHAPES.filter(lambda shape: len(shape) != 4 or shape[1] != 8))
def test_what_is_not_a_map_of_its_channels_is_rejected(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ATConv2d\(8\) takes B 8 H W.*channels come second") as raised:
        ATConv2d(8)(torch.zeros(shape))
    assert str(tuple(shape)) in str(raised.value)


@settings(deadline=None, max_examples=30)
@given(shape=WRONG_SHAPES.filter(lambda shape: len(shape) != 3 or shape[2] != 8))
def test_what_are_not_tokens_of_its_channels_is_rejected(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ATConvTokens\(8\) takes B N 8.*go to ATConv2d") as raised:
        ATConvTokens(8)(torch.zeros(shape))
    assert str(tuple(shape)) in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("module", MODULES)
def test_integers_are_rejected(module: type[nn.Module], dtype: torch.dtype) -> None:
    mixer = module(8)
    with pytest.raises(TypeError, match=rf"floating point, got {dtype}.*\.float\(\)"):
        mixer(random_input(mixer).to(dtype))


@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 0, 3), (2, 8, 3, 0)])
def test_empty_maps_are_rejected(shape: tuple[int, ...], routing: bool) -> None:
    with pytest.raises(ValueError, match="at least one channel and one position"):
        ATConv2d(8, routing=routing)(torch.zeros(shape))


def test_no_tokens_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least one channel and one position"):
        ATConvTokens(8)(torch.zeros(2, 0, 8))


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 200).filter(lambda n: round(n**0.5) ** 2 != n))
def test_tokens_that_are_no_square_need_a_grid(count: int) -> None:
    with pytest.raises(
        ValueError, match=rf"{count} tokens are not a square grid; pass grid_size=\(height, width\)"
    ):
        ATConvTokens(8)(torch.zeros(1, count, 8))


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (0, 17), (1, 16)])
def test_tokens_that_do_not_fill_the_grid_are_rejected(grid: tuple[int, int]) -> None:
    height, width = grid
    with pytest.raises(
        ValueError, match=f"17 tokens do not fill a grid of {height} × {width} = {height * width}.*class"
    ):
        ATConvTokens(8)(torch.zeros(1, 17, 8), grid)
