"""Each mixer learns to do what its attention did, by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

import atconv
from atconv import replace_attention
from replace.test_replace import Unused, maxvit, swin, swin_v2, torchvision_vit, vit
from studies.replace.distill import distill_blocks
from support.helpers import randomize


def pair(make: Any = vit) -> tuple[nn.Module, nn.Module]:
    """A model with ATConv, and the model as it was."""
    teacher = randomize(make()).eval()
    student = copy.deepcopy(teacher)
    replace_attention(student)
    return student, teacher


def batches(count: int = 4, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, size, size, generator=generator) for _ in range(count)]


def mixer_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, atconv.ATConvTokens)]


@pytest.mark.parametrize(
    ("make", "size"), [(vit, 32), (torchvision_vit, 32), (swin, 64), (swin_v2, 64), (maxvit, 64)]
)
def test_every_mixer_comes_closer(make: Any, size: int) -> None:
    student, teacher = pair(make)
    report = distill_blocks(student, teacher, batches(size=size), steps=40, lr=1e-2, progress=False)
    assert len(report.errors) == len(mixer_names(student))
    assert all(last < 0.9 * first for first, last in report.errors.values()), report.errors
    assert all(name in str(report) for name in report.errors)


def test_the_error_is_that_of_mixer_and_attention() -> None:
    student, teacher = pair()
    [images] = batches(1)
    seen: dict[str, Any] = {}
    attention = teacher.blocks[1].attn
    hook = attention.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    with torch.no_grad():
        teacher(images)
    hook.remove()
    mixer = copy.deepcopy(student.blocks[1].attn)
    mixer.grid.size = (4, 4)
    with torch.no_grad():
        expected = (mixer(seen["x"]) - seen["y"]).square().mean() / seen["y"].square().mean()
    report = distill_blocks(student, teacher, [images], progress=False)
    assert report.errors["blocks.1.attn"][0] == pytest.approx(float(expected), rel=1e-4)


def test_attention_that_the_teacher_does_not_run_is_named() -> None:
    def make() -> nn.Module:
        model = Unused()
        model.body.num_prefix_tokens = 0
        return model

    student, teacher = pair(make)
    with pytest.raises(ValueError, match=r"the teacher does not run body\.blocks\.1\.attn"):
        distill_blocks(student, teacher, batches(), progress=False)


def test_only_the_mixers_change_and_the_models_are_left_as_they_were() -> None:
    student, teacher = pair()
    student.train()
    before, as_it_was = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    distill_blocks(student, teacher, batches(), progress=False)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".attn.mixer." in name for name in changed)
    assert all(torch.equal(tensor, as_it_was[name]) for name, tensor in teacher.state_dict().items())
    assert student.training
    assert not teacher.training
    assert not any(module._forward_hooks for module in teacher.modules())
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert all(parameter.grad is None for parameter in [*student.parameters(), *teacher.parameters()])


def test_an_error_on_the_way_leaves_no_hooks() -> None:
    student, teacher = pair()
    with pytest.raises(AssertionError):
        distill_blocks(student, teacher, [torch.randn(1, 3, 7, 7)], progress=False)
    assert not any(module._forward_hooks for module in teacher.modules())


def test_batches_come_in_many_forms() -> None:
    student, teacher = pair()
    [images] = batches(1)
    errors = [
        distill_blocks(copy.deepcopy(student), teacher, data, progress=False).errors
        for data in ([images], [(images, torch.zeros(4))], [{"x": images}])
    ]
    assert errors[0] == errors[1] == errors[2]


def test_data_are_repeated_until_the_steps_are_done() -> None:
    student, teacher = pair()
    assert distill_blocks(student, teacher, batches(2), steps=5, progress=False).steps == 5
    assert distill_blocks(student, teacher, batches(4), progress=False).steps == 4


def test_bad_input_is_rejected() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"call atconv\.replace_attention on it first"):
        distill_blocks(teacher, teacher, batches(1))
    with pytest.raises(ValueError, match=r"no attention at blocks\.0\.attn, blocks\.1\.attn"):
        distill_blocks(student, student, batches(1))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is float16"):
        distill_blocks(copy.deepcopy(student).half(), teacher, batches(1))
    with pytest.raises(ValueError, match=r"nothing of the mixer blocks\.0\.attn can learn"):
        distill_blocks(copy.deepcopy(student).requires_grad_(False), teacher, batches(1))
    with pytest.raises(ValueError, match="no batches"):
        distill_blocks(student, teacher, [])
    with pytest.raises(ValueError, match="at least 1"):
        distill_blocks(student, teacher, batches(1), steps=0)
    with pytest.raises(TypeError, match="how many steps"):
        distill_blocks(student, teacher, iter(batches(1)))
    with pytest.raises(ValueError, match="ended after 2 of 3 batches"):
        distill_blocks(student, teacher, iter(batches(2)), steps=3, progress=False)


def test_models_and_data_that_do_not_fit_are_rejected() -> None:
    student, teacher = pair()
    with pytest.raises(TypeError, match=r"the student is a model, an nn\.Module, got a NoneType"):
        distill_blocks(None, teacher, batches(1))  # type: ignore[arg-type]
    for data in (batches(1)[0], TensorDataset(batches(1)[0])):
        with pytest.raises(TypeError, match="data are batches, such as a DataLoader"):
            distill_blocks(student, teacher, data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is on cpu, the teacher's on meta"):
        distill_blocks(student, copy.deepcopy(teacher).to("meta"), batches(1))
    coarse = copy.deepcopy(teacher).bfloat16()
    with pytest.raises(ValueError, match=r"is torch\.float32, the teacher's torch\.bfloat16: call it"):
        distill_blocks(student, coarse, batches(1))
    with torch.autocast("cpu", torch.bfloat16):
        errors = distill_blocks(student, coarse, batches(1), progress=False).errors
    assert all(0 < first < 10 for first, _ in errors.values())
    wider = timm.create_model("test_vit", img_size=32, patch_size=8, embed_dim=96)
    with pytest.raises(ValueError, match=r"student's blocks\.0\.attn does not take the input of the teacher"):
        distill_blocks(student, wider, batches(1))
    with torch.inference_mode(), pytest.raises(ValueError, match="nothing is learned under"):
        distill_blocks(student, teacher, batches(1))


def test_streams_and_quantized_teachers_are_taken() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(batches(2))

    student, teacher = pair()
    coarse = torch.ao.quantization.quantize_dynamic(teacher, {nn.Linear})
    assert distill_blocks(student, coarse, Stream(), steps=3, progress=False).steps == 3


def test_it_learns_under_autocast() -> None:
    student, teacher = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = distill_blocks(student, teacher, batches(), steps=40, lr=1e-2, progress=False)
    after = distill_blocks(student, teacher, batches(1), steps=1, lr=1e-9, progress=False)
    for name, (first, last) in report.errors.items():
        assert last < 0.9 * first
        assert after.errors[name][0] < 1.2 * last  # in fp32, with the weights as they are


def test_compiled_models_are_unwrapped() -> None:
    student, teacher = pair()
    expected = distill_blocks(copy.deepcopy(student), teacher, batches(1), progress=False).errors
    compiled = [torch.compile(model, backend="eager") for model in (student, teacher)]
    assert distill_blocks(*compiled, batches(1), progress=False).errors == expected  # type: ignore[arg-type]


def test_a_swin_block_is_measured_by_what_it_adds() -> None:
    student, teacher = pair(swin)
    seen: dict[str, Any] = {}
    block: Any = teacher.layers[0].blocks[0]  # type: ignore[index, union-attr]
    hook = block.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    [images] = batches(1, 64)
    with torch.no_grad():
        teacher(images)
        hook.remove()
        actual = student.layers[0].blocks[0](seen["x"])  # type: ignore[index, union-attr, operator]
    expected = (actual - seen["y"]).square().mean() / (seen["y"] - seen["x"]).square().mean()
    report = distill_blocks(student, teacher, [images], progress=False)
    assert report.errors["layers.0.blocks.0"][0] == pytest.approx(float(expected), rel=1e-4)


def test_an_error_that_is_not_finite_ends_it_before_a_mixer_changes() -> None:
    student, teacher = pair()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match=r"the error of blocks\.0\.attn is nan in batch 1"):
        distill_blocks(student, teacher, [torch.full((1, 3, 32, 32), float("nan"))], progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
