"""SiT as diffusers' own tests use a model: saved in parts and variants, cast, compiled, adapted, trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atconv.models.sit import SiT
from support.helpers import assert_close
from support.tiny_sit import FAMILIES, inputs_of, tiny_sit

LAYERS = ["context_proj", "value_proj", "qkv", "proj", "fc1", "modulation"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> SiT:
    return tiny_sit(token_mixer=request.param)


@torch.no_grad()
def velocity(model: SiT, inputs: tuple[Tensor, ...]) -> Tensor:
    output: Tensor = model(*inputs, return_dict=False)[0]
    return output


# Saved and opened.


def test_a_model_saved_in_shards_opens_with_the_same_output(model: SiT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    inputs = inputs_of(model)
    assert_close(velocity(SiT.from_pretrained(tmp_path).eval(), inputs), velocity(model, inputs), 1e-6)


def test_a_variant_is_opened_by_its_name_alone(model: SiT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="40KB")
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        SiT.from_pretrained(tmp_path)
    inputs = inputs_of(model)
    opened = SiT.from_pretrained(tmp_path, variant="fp16").eval()
    assert_close(velocity(opened, inputs), velocity(model, inputs), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_opens_in_the_dtype_asked_for(dtype: torch.dtype, model: SiT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    opened = SiT.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in opened.parameters()} == {opened.dtype} == {dtype}


# Adapters.


def adapter(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, lora_alpha=2, target_modules=LAYERS, init_lora_weights=False, **options)


@pytest.mark.parametrize("dora", [False, True])
def test_a_saved_adapter_loads_into_another_model(dora: bool, model: SiT, tmp_path: Path) -> None:
    inputs = inputs_of(model)
    before = velocity(model, inputs)
    other = SiT.from_config(model.config)
    other.load_state_dict(model.state_dict())
    model.add_adapter(adapter(use_dora=dora))
    adapted = velocity(model, inputs)
    assert not torch.allclose(adapted, before)
    model.save_lora_adapter(tmp_path)
    (file,) = (path.name for path in tmp_path.glob("*.safetensors"))
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True, weight_name=file)
    assert_close(velocity(other.eval(), inputs), adapted, 1e-5)
    other.unload_lora()
    assert_close(velocity(other, inputs), before, 1e-6)


def test_an_adapter_is_fused_and_taken_out_again(model: SiT) -> None:
    inputs = inputs_of(model)
    before = velocity(model, inputs)
    model.add_adapter(adapter())
    adapted = velocity(model, inputs)
    model.fuse_lora()
    assert_close(velocity(model, inputs), adapted, 1e-5)
    model.unfuse_lora()
    model.delete_adapters("default")
    assert_close(velocity(model, inputs), before, 1e-5)


def test_an_adapted_model_may_store_its_weights_smaller(model: SiT) -> None:
    model.add_adapter(adapter())
    inputs = inputs_of(model)
    expected = velocity(model, inputs)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert model.blocks[0].mlp.fc1.base_layer.weight.dtype == torch.float8_e4m3fn
    assert_close(velocity(model, inputs), expected, 0.3)


# Trained and compiled.


def test_only_adapters_learn(model: SiT) -> None:
    model.add_adapter(adapter())
    model.enable_gradient_checkpointing()
    model.train()(*inputs_of(model)).square().mean().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning
    assert all("lora_" in name for name in learning)


def test_weights_that_are_stored_smaller_are_trained_through(model: SiT) -> None:
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    model.train()(*inputs_of(model)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_blocks_are_compiled_once_for_all_of_a_kind(model: SiT) -> None:
    kinds = len({type(block.mixer) for block in model.blocks})
    inputs = inputs_of(model)
    expected = velocity(model, inputs)
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=kinds, fail_on_recompile_limit_hit=True):
        assert_close(velocity(model, inputs), expected, 1e-5)


def test_groups_of_blocks_are_offloaded(model: SiT, tmp_path: Path) -> None:
    """Between the processor and the disk here, as between an accelerator and the processor."""
    inputs = inputs_of(model)
    expected = velocity(model, inputs)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    assert_close(velocity(model, inputs), expected, 1e-6)
