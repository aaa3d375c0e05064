"""Fit each new mixer to the attention it replaced, all blocks in one pass, before end-to-end tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm

from atconv.replace.adapters import ATConvAdapter, ATConvBlock, GridWriter

__all__ = ["DistillationReport", "distill_blocks"]


@dataclass(frozen=True)
class DistillationReport:
    """How close each mixer came to its attention. Printed, it is a table."""

    errors: dict[str, tuple[float, float]]
    """by name: mean squared difference over mean square of the attention's output (of what a block of
    timm's Swin or MaxViT adds to its input), in the first batch and over the last tenth of them, each
    before it was learned from"""
    steps: int

    def __str__(self) -> str:
        width = max(len(name) for name in self.errors)
        head = f"{'mixer':<{width}}  squared error, relative"
        rows = [f"{name:<{width}}  {first:.3f} → {last:.3f}" for name, (first, last) in self.errors.items()]
        return "\n".join([head, *rows])


def distill_blocks(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[Any],
    steps: int | None = None,
    lr: float = 2e-3,
    progress: bool = True,
) -> DistillationReport:
    """Fit each mixer of a model to the attention that it replaced, by what the attention does on data.

    >>> student = copy.deepcopy(vit)
    >>> atconv.replace_attention(student)
    >>> print(distill_blocks(student, vit, loader))
    >>> ...                                                   # then tune `student` end to end, as any model

    The teacher runs; every mixer gets the input of its attention and learns to give the same output, each by
    itself: an error in one block does not reach the next. Only the mixers change.

    Args:
        student: a copy of the teacher after `replace_attention`.
        teacher: the model as it was. It is run in eval mode and left as it is.
        data: batches: images B C H W; or lists whose first entry is that; or named arguments of the model.
            Without labels. It is repeated when it ends before the steps do.
        steps: batches to learn from; one pass over the data by default.
        lr: of AdamW at its start; it falls to 0 along a cosine.
        progress: show a bar.

    Returns:
        the error of every mixer in the first batch and in the last.

    Raises:
        ValueError: the student has no replaced attention, the teacher none of the same name or does not run
            it or is of another width, dtype or device, mixers are frozen or of float16, there are no data, or
            `steps` < 1.
        TypeError: these are no models or no batches, or `steps` is not given and the data have no length.
        FloatingPointError: an error is not finite; the mixers stay as the batch before left them.
    """
    _check_arguments(student, teacher, data)
    student, teacher = (getattr(model, "_orig_mod", model) for model in (student, teacher))  # compiled
    pairs = _pairs(student, teacher)
    steps = _steps(steps, data)
    parameters = {name: _mixer_parameters(name, new) for name, (new, _) in pairs.items()}
    _check_alike(pairs)
    optimizer = torch.optim.AdamW(itertools.chain(*parameters.values()), lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    device = next(teacher.parameters()).device
    errors: dict[str, list[float]] = {name: [] for name in pairs}
    hooks = [
        old.register_forward_hook(_Fit(name, new, parameters[name], errors[name]), with_kwargs=True)
        for name, (new, old) in pairs.items()
    ]
    hooks += _share_grids(student, teacher)
    modes = {module: module.training for module in (*student.modules(), *teacher.modules())}
    student.eval(), teacher.eval()
    try:
        for batch in tqdm(_batches(data, steps), "distilling", steps, disable=not progress, unit="batch"):
            optimizer.zero_grad()
            with torch.no_grad():
                _run(teacher, batch, device)
            _check_all_ran(errors)
            optimizer.step()
            torch.clear_autocast_cache()  # under autocast, the next output would come from the old weights
            schedule.step()
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        optimizer.zero_grad()
    last = max(1, steps // 10)
    return DistillationReport(
        {name: (series[0], sum(series[-last:]) / last) for name, series in errors.items()}, steps
    )


def _check_arguments(student: Any, teacher: Any, data: Any) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"the {name} is a model, an nn.Module, got a {type(model).__name__}")
    if isinstance(data, (Tensor, Dataset)) and not isinstance(data, IterableDataset):
        raise TypeError(
            "data are batches, such as a DataLoader or a list of tensors B C H W, got a "
            f"{type(data).__name__}"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("nothing is learned under torch.inference_mode(): leave it before the call")


def _check_all_ran(errors: dict[str, list[float]]) -> None:
    idle = [name for name, series in errors.items() if not series]
    if idle:
        raise ValueError(f"the teacher does not run {', '.join(idle)}: replace only attention that it runs")


class _Fit:
    """A hook behind an attention: its mixer runs on the same input, and gets its gradient."""

    def __init__(
        self, name: str, mixer: nn.Module, parameters: list[nn.Parameter], errors: list[float]
    ) -> None:
        self.name, self.mixer, self.parameters, self.errors = name, mixer, parameters, errors

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        expected = _first(output)
        with torch.enable_grad():
            actual = self._run_mixer(args, kwargs)
            error = nn.functional.mse_loss(actual.float(), expected.float())
            # A block's output holds its input, which the mixer need not learn.
            learned = expected - args[0] if isinstance(self.mixer, ATConvBlock) else expected
            error = error / learned.float().square().mean().clamp_min(1e-12)
            error.backward(inputs=self.parameters)
        self.errors.append(error.item())
        if not math.isfinite(self.errors[-1]):
            raise FloatingPointError(
                f"the error of {self.name} is {self.errors[-1]} in batch {len(self.errors)}: look for "
                "numbers that are not finite in the data and in the teacher, or lower lr"
            )

    def _run_mixer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        try:
            return _first(self.mixer(*args, **kwargs))
        except ValueError as error:
            raise ValueError(
                f"the student's {self.name} does not take the input of the teacher's; the teacher must be "
                f"the model as it was before atconv.replace_attention. {error}"
            ) from error


def _pairs(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """By name: the module in the place of an attention, and the attention."""
    replaced = {name: module for name, module in student.named_modules() if isinstance(module, ATConvAdapter)}
    if not replaced:
        raise ValueError("the student has no replaced attention: call atconv.replace_attention on it first")
    originals = dict(teacher.named_modules())
    lacking = [name for name in replaced if isinstance(originals.get(name), (type(None), ATConvAdapter))]
    if lacking:
        raise ValueError(
            f"the teacher has no attention at {', '.join(lacking)}: it must be the model as it was before "
            "atconv.replace_attention, such as a deepcopy made then"
        )
    return {name: (module, originals[name]) for name, module in replaced.items()}


def _check_alike(pairs: Mapping[str, tuple[Any, nn.Module]]) -> None:
    for name, (new, old) in pairs.items():
        ours, its = next(new.mixer.parameters()), next(old.parameters(), None)
        if its is None:  # quantized, say
            continue
        if ours.device != its.device:
            raise ValueError(f"the student's {name} is on {ours.device}, the teacher's on {its.device}")
        if ours.dtype != its.dtype and not torch.is_autocast_enabled(its.device.type):
            raise ValueError(
                f"the student's {name} is {ours.dtype}, the teacher's {its.dtype}: call it under "
                "torch.autocast, or give both the same"
            )


def _steps(steps: int | None, data: Any) -> int:
    if steps is None:
        try:
            steps = len(data)
        except TypeError as error:
            raise TypeError("the data have no length: say how many steps to take") from error
        if steps == 0:
            raise ValueError("there are no batches to learn from")
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps must be at least 1, a whole number, got {steps!r}")
    return steps


def _mixer_parameters(name: str, module: Any) -> list[nn.Parameter]:
    parameters = [parameter for parameter in module.mixer.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"nothing of the mixer {name} can learn: set requires_grad of its parameters")
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        raise ValueError(f"the mixer {name} is float16, too coarse to learn in: use float32, with autocast")
    return parameters


def _share_grids(student: nn.Module, teacher: nn.Module) -> list[Any]:
    """The student's mixers read the grid of what the teacher's patch embedding sees."""
    return [
        teacher.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
        for name, module in student.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, GridWriter)
    ]


def _batches(data: Iterable[Any], steps: int) -> Iterator[Any]:
    taken = 0
    while taken < steps:
        before = taken
        for batch in itertools.islice(data, steps - taken):
            taken += 1
            yield batch
        if taken == before:
            raise ValueError(f"the data ended after {taken} of {steps} batches and cannot be repeated")


def _run(model: nn.Module, batch: Any, device: torch.device) -> None:
    if isinstance(batch, Mapping):
        model(**{name: _to(value, device) for name, value in batch.items()})
    else:
        model(_to(batch[0] if isinstance(batch, (tuple, list)) else batch, device))


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
