"""Tools that act on layers where they are called: each must change or keep the output as on a ResNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from diffusers.hooks import apply_layerwise_casting
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from support.helpers import assert_close
from support.networks import NETWORKS, layers, network

every_network = pytest.mark.parametrize("name", NETWORKS)
FLOAT8 = torch.float8_e4m3fn


@every_network
@torch.no_grad()
def test_hooks_of_every_layer_run_and_change_the_output(name: str) -> None:
    model, inputs = network(name)
    expected = model(*inputs)
    for layer in layers(model).values():
        hook = layer.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
        assert not torch.allclose(model(*inputs), expected)
        hook.remove()
        assert_close(model(*inputs), expected, 1e-6)


def lora_targets(model: nn.Module) -> list[str]:
    """Linear layers and convolutions; LoRA does not take depthwise ones."""
    return [
        name
        for name, layer in layers(model).items()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]


@every_network
@torch.no_grad()
def test_lora_acts_on_every_layer_before_it_is_merged(name: str) -> None:
    for target in lora_targets(network(name)[0]):
        model, inputs = network(name)
        base = model(*inputs)
        # A name alone would be a suffix, which other layers have too.
        config = LoraConfig(
            r=2, target_modules="^" + target.replace(".", r"\.") + "$", init_lora_weights=False
        )
        adapted = get_peft_model(model, config)
        output = adapted(*inputs)
        assert (output - base).norm() > 1e-4 * base.norm(), target
        assert_close(adapted.merge_and_unload()(*inputs), output, 2e-5)


@every_network
def test_lora_trains_every_layer(name: str) -> None:
    model, inputs = network(name)
    config = LoraConfig(r=2, target_modules=lora_targets(model), init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted(*inputs).square().sum().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(lora_targets(network(name)[0]))
    assert all(p.grad is not None and p.grad.any() for p in trained)


@every_network
@pytest.mark.parametrize("place", ["cpu", "disk"])
@torch.no_grad()
def test_offloaded_weights_give_the_same_output(name: str, place: str, tmp_path: Path) -> None:
    model, inputs = network(name)
    expected = model(*inputs)
    device = torch.device("cpu")
    if place == "cpu":
        cpu_offload(model, execution_device=device)
    else:
        disk_offload(model, str(tmp_path), execution_device=device)
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert_close(model(*inputs), expected, 1e-5)
    assert all(parameter.is_meta for parameter in model.parameters())


def linear_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@every_network
@torch.no_grad()
def test_torchao_weights_of_eight_bits(name: str) -> None:
    """The output is that of the weights as they are rounded."""
    model, inputs = network(name)
    quantize_(model, Int8WeightOnlyConfig())
    rounded, _ = network(name)
    for layer, quantized in zip(linear_layers(rounded), linear_layers(model), strict=True):
        assert not torch.equal(quantized.weight.dequantize(), layer.weight)
        layer.weight.copy_(quantized.weight.dequantize())
    assert_close(model(*inputs), rounded(*inputs), 1e-5)


@every_network
@torch.no_grad()
def test_torchao_activations_of_eight_bits(name: str) -> None:
    model, inputs = network(name)
    expected = model(*inputs)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    output = model(*inputs)
    assert not torch.equal(output, expected)
    assert_close(output, expected, 0.1)


@every_network
@torch.no_grad()
def test_quantization_of_an_exported_graph(name: str) -> None:
    """PT2E for Inductor on x86: calibrated on the inputs, within a tenth of the output."""
    if Version(torch.__version__) < Version("2.12"):
        pytest.skip("up to torch 2.11 PT2E finds nothing to quantize, in ResNet either")
    model, inputs = network(name)
    graph = torch.export.export(model, inputs).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    prepared(*inputs)
    quantized = convert_pt2e(prepared)
    expected, output = model(*inputs), quantized(*inputs)
    assert any("quantize" in str(node.target) for node in quantized.graph.nodes)
    assert 0 < (output - expected).norm() < 0.1 * expected.norm()


@every_network
@torch.no_grad()
def test_dynamic_quantization_of_torch(name: str) -> None:
    model, inputs = network(name)
    expected = model(*inputs)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not linear_layers(quantized)
    output = quantized(*inputs)
    assert not torch.equal(output, expected)
    assert_close(output, expected, 0.15)


@every_network
@torch.no_grad()
def test_weights_stored_as_float8(name: str) -> None:
    """diffusers' layerwise casting: the output is that of the weights as they are rounded."""
    model, inputs = network(name)
    apply_layerwise_casting(model, storage_dtype=FLOAT8, compute_dtype=torch.float32)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == FLOAT8}
    assert stored
    rounded, _ = network(name)
    for key, parameter in rounded.named_parameters():
        if key in stored:
            parameter.copy_(parameter.to(FLOAT8))
    assert_close(model(*inputs), rounded(*inputs), 1e-5)


@torch.no_grad()
def test_sit_stores_its_weights_as_float8() -> None:
    """By the method that diffusers' own models have, computing in bfloat16."""
    model: Any
    model, (x, t, labels) = network("SiT")
    expected = model(x, t, labels)
    model.to(torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=FLOAT8, compute_dtype=torch.bfloat16)
    output: Tensor = model(x.bfloat16(), t, labels)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), expected, 0.3)
