"""AttNet under torch.jit, torch.fx and torch.func: the kinds of timm's test_models.py, and a few more."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from atconv import ATConv2d
from atconv.deploy import fold
from atconv.mixers import MIXERS
from atconv.models.attnet import AttNet
from support.helpers import assert_close, randomize, tiny_attnet

FORMS = {"plain": {}, "norm and scale": {"glu_norm": True, "ls_init_value": 0.5}}
OPTIONS = [{}, {"routing": False}, {"inhibition": False}, {"context_grid": True}, {"bias": False}]
of_forms = pytest.mark.parametrize("form", FORMS)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")


def image(batch: int = 2, height: int = 64, width: int = 48) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def fx_model(model: nn.Module) -> nn.Module:
    """As timm's suite makes it."""
    leaves = dict(
        leaf_modules=get_notrace_modules(),
        autowrap_functions=get_notrace_functions(),
        param_shapes_constant=True,
    )
    train, evaluated = get_graph_node_names(model, tracer_kwargs=leaves)
    return create_feature_extractor(
        model, train_return_nodes=[train[-1]], eval_return_nodes=[evaluated[-1]], tracer_kwargs=leaves
    )


@of_forms
@torch.no_grad()
def test_a_trace_serves_every_batch_and_size(form: str) -> None:
    model = tiny_attnet(**FORMS[form])
    traced = torch.jit.trace(model, image())
    for x in (image(), image(1, 33, 50), image(3, 96, 64)):
        assert_close(traced(x), model(x), 1e-5)


@of_forms
def test_an_exported_graph_has_no_operator_that_core_ml_lacks(form: str) -> None:
    program = torch.export.export(tiny_attnet(**FORMS[form]), (image(),)).run_decompositions({})
    targets = {str(node.target) for node in program.graph.nodes}
    assert targets.isdisjoint({"aten.addcmul.default", "aten.bitwise_and.Tensor", "aten.__and__.Tensor"})


@pytest.mark.parametrize("options", OPTIONS)
def test_the_operator_traces_with_every_option(options: dict[str, bool]) -> None:
    mixer = randomize(ATConv2d(8, **options))
    traced = torch.jit.trace(mixer, torch.randn(2, 8, 6, 7))
    for size in ((1, 8, 9, 4), (3, 8, 5, 5)):
        x = torch.randn(size)
        assert_close(traced(x), mixer(x), 1e-5)


@of_forms
@torch.no_grad()
def test_a_script_computes_the_same_and_survives_a_file(form: str) -> None:
    with timm.layers.set_scriptable(True):
        model = tiny_attnet(**FORMS[form])
    for each in (model, fold(model)):
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(each), file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for x in (image(), image(1, 33, 50)):
            assert_close(loaded(x), model(x), 1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_operator_is_scripted_with_every_option(options: dict[str, bool]) -> None:
    mixer, x = randomize(ATConv2d(8, **options)), torch.randn(2, 8, 6, 7)
    assert_close(torch.jit.script(mixer)(x), mixer(x), 1e-5)


@of_forms
@torch.no_grad()
def test_a_symbolic_trace_computes_the_same_bits(form: str) -> None:
    model = tiny_attnet(**FORMS[form])
    for x in (image(), image(1, 33, 50)):
        assert torch.equal(next(iter(fx_model(model)(x).values())), model(x))
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_every_mixer_has_a_symbolic_trace(mixer: str) -> None:
    model = tiny_attnet(token_mixer=mixer)
    traced = fx_model(model)
    for each in (model, traced):
        each.eval()
    for x in (image(), image(1, 32, 96)):
        assert torch.equal(next(iter(traced(x).values())), model(x))


@of_forms
def test_a_symbolic_trace_has_the_same_gradients(form: str) -> None:
    model = tiny_attnet(**FORMS[form]).train()
    traced = fx_model(copy.deepcopy(model))
    for each in (model, traced):
        output = each(image())
        output = output if isinstance(output, Tensor) else next(iter(output.values()))
        output.square().sum().backward()
    expected = dict(model.named_parameters())
    assert {name for name, _ in traced.named_parameters()} == expected.keys()
    for name, parameter in traced.named_parameters():
        assert_close(parameter.grad, expected[name].grad, 1e-6)


@of_forms
@torch.no_grad()
def test_a_symbolic_trace_can_be_scripted(form: str) -> None:
    with timm.layers.set_scriptable(True):
        model = tiny_attnet(**FORMS[form])
    scripted = torch.jit.script(fx_model(model))
    assert_close(next(iter(scripted(image()).values())), model(image()), 1e-5)


@torch.no_grad()
def test_torchvision_extracts_features_by_name() -> None:
    model = tiny_attnet(**FORMS["norm and scale"])
    nodes = {f"stages.{i}.blocks.0.token_mixer.proj": str(i) for i in range(4)}
    outputs: dict[str, Tensor] = {}
    for i in range(4):
        layer = model.stages[i].blocks[0].token_mixer.proj
        layer.register_forward_hook(lambda _, args, output, i=i: outputs.update({str(i): output}))
    model(image())
    features = create_feature_extractor(tiny_attnet(**FORMS["norm and scale"]), nodes)(image())
    assert features.keys() == outputs.keys()
    for name, feature in features.items():
        assert torch.equal(feature, outputs[name])


@torch.no_grad()
def test_a_traced_graph_still_rejects_other_maps() -> None:
    traced = torch.fx.symbolic_trace(ATConv2d(8))
    with pytest.raises(ValueError, match="takes B 8 H W, got"):
        traced(torch.randn(2, 7, 5, 5))


@of_forms
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_vmap_over_images(form: str, memory_format: torch.memory_format) -> None:
    model = tiny_attnet(**FORMS[form])
    x = torch.stack([image().contiguous(memory_format=memory_format) for _ in range(3)])
    assert_close(torch.vmap(model)(x), torch.stack([model(one) for one in x]), 1e-5)
    with torch.no_grad():
        assert_close(torch.vmap(model)(x), torch.stack([model(one) for one in x]), 1e-5)


@of_forms
def test_vmap_over_an_ensemble(form: str) -> None:
    models = [randomize(tiny_attnet(**FORMS[form]), seed) for seed in range(3)]
    weights, buffers = torch.func.stack_module_state(models)

    def call(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (x,))

    outputs = torch.vmap(call, in_dims=(0, 0, None))(weights, buffers, image())
    assert_close(outputs, torch.stack([model(image()) for model in models]), 1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_vmap_over_large_channels_last_maps(batch: int) -> None:
    """Which take one convolution a sample."""
    mixer = randomize(ATConv2d(64)).double()
    x = torch.randn(2, batch, 64, 32, 36, dtype=torch.float64)
    x = torch.stack([one.contiguous(memory_format=torch.channels_last) for one in x])
    expected = torch.stack([mixer(one) for one in x])
    assert_close(torch.vmap(mixer)(x), expected, 1e-12)


@of_forms
def test_jacobians_forward_and_backward_agree(form: str) -> None:
    model, x = tiny_attnet(**FORMS[form]).double(), image(1, 6, 5).double()
    backward = torch.func.jacrev(model)(x)
    assert_close(torch.func.jacfwd(model)(x), backward, 1e-8)
    rows = [torch.autograd.grad(model(y)[0, i], y)[0] for i in range(5) for y in [x.clone().requires_grad_()]]
    assert_close(backward[0, :, 0], torch.stack(rows)[:, 0], 1e-10)


def test_batched_gradients_of_many_outputs() -> None:
    """Without a second derivative, where the gate's backward may work in place."""
    model, x = tiny_attnet(**FORMS["norm and scale"]).double(), image(1, 6, 5).double().requires_grad_()
    (rows,) = torch.autograd.grad(model(x), x, torch.eye(5, dtype=x.dtype)[:, None], is_grads_batched=True)
    assert_close(rows, torch.func.jacrev(model)(x.detach())[0], 1e-8)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_lie_in_memory_as_their_weights(mixer: str, memory_format: torch.memory_format) -> None:
    """DistributedDataParallel warns of others, and copies them in every step."""
    model: AttNet = tiny_attnet(token_mixer=mixer, **FORMS["norm and scale"]).train()
    model(image(2, 128, 96).contiguous(memory_format=memory_format)).sum().backward()
    apart = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.stride() != p.stride()]
    assert not apart
