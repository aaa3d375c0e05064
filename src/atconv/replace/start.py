"""Where replaced layers start: at static kernels, with routing at zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.replace.adapters import ATConvAdapter, ATConvBlock
from atconv.replace.counting import Example, arguments_of
from atconv.replace.families import Site

__all__ = ["check_finite", "fit_kernels", "in_double", "is_rounding", "start_at"]

_ROUNDING = 1e-10  # share of the squares of answers or weights, in float32


def start_at(mixer: Any, kernels: Tensor) -> Tensor:
    """Begin with kernels that are C K² after inhibition: λ starts at 1/2, which leaves half of their mean.

    Returns:
        C K² as the mixer computes them, rounded to its dtype, in float64.

    Raises:
        ValueError: they overflow that dtype.
    """
    nn.init.zeros_(mixer.kernel_gen.weight)
    mixer.kernel_bias.copy_(kernels + kernels.mean(1, keepdim=True))
    stored = mixer.kernels(mixer.kernel_bias.new_zeros(1, mixer.in_channels, *[1] * mixer.axes))[0]
    check_finite(stored, "the kernels it starts from")
    return in_double(stored.flatten(1))


def check_finite(numbers: Tensor, what: str) -> None:
    """Raise ValueError for infinite or undefined numbers."""
    if not numbers.isfinite().all():
        raise ValueError(f"{what} are not finite in {numbers.dtype}: give a model in float32 or bfloat16")


def is_rounding(missed: float, total: float, dtype: torch.dtype) -> bool:
    """Whether squares that were missed are a share that is rounding."""
    return missed <= max(_ROUNDING, torch.finfo(dtype).eps ** 2) * total


@torch.no_grad()
def fit_kernels(
    model: nn.Module, sites: Sequence[Site], adapters: Sequence[ATConvAdapter], inputs: Example
) -> None:
    """Start each adapter at the static kernels that come nearest to its attention in one pass of the model.

    Before its output projection, attention answers o_p = Σ_q a_pq v_q at position p of a map of N, and o_t
    for class and register tokens t. ATConv gives r_p = Σ_δ k_δ v_{p+δ}, and all P of those tokens the mean
    r_t = (Σ_t v_t + Σ_p r_p) / (P + N). The kernel of a channel minimizes, over all M maps,

        Σ_p (o_p − r_p)² + N² (mean_p(o_p) − mean_p(r_p))² + N² Σ_t (o_t − r_t)²

    Without the last two terms the noise of single positions shrinks the kernels, and with them all that a
    head or a class token reads: those read means, in which that noise is gone. Where answers remain
    unexplained, few maps do not decide alone: S being the least sum, K⁴ S / M · Σ_δ (k_δ − 1/K²)² is
    added, which draws kernels to local averages. `site.explained` is the share of the squares that is
    reached, `site.averages` that of local averages. `site.exact` is for a function that is the same on all
    tokens, where there are positions enough to tell.

    Raises:
        ValueError: the model does not run on the inputs, or they are empty or not finite.
    """
    fits = [_Fit(model, *pair) for pair in zip(sites, adapters, strict=True) if pair[0].copied]
    modes = {module: module.training for module in model.modules()}
    handles = [
        owner.register_forward_pre_hook(hook, with_kwargs=True)
        for owner, hook in dict.fromkeys(hook for site in sites for hook in site.hooks)
    ]
    handles += [fit.attention.register_forward_hook(fit.add_pass, with_kwargs=True) for fit in fits]
    args, kwargs = arguments_of(inputs)
    try:
        model.eval()(*args, **kwargs)
    except Exception as error:  # whatever the model raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"nothing was replaced. {type(model).__name__} does not run on `start`: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    for fit in fits:
        fit.set_kernels()


class _Squares:
    """Σ (o − k·w)² over answers o and windows w, for the kernel k of each channel."""

    def __init__(self) -> None:
        self.gram: Any = 0
        self.cross: Any = 0
        self.square: Any = 0
        self.energy = 0.0
        """of the answers as they were, with what no kernel changes"""

    def add(self, windows: Tensor, answers: Tensor, fixed: Tensor | float = 0.0) -> None:
        """Windows C K² M, answers C M, and the part of them that no kernel changes."""
        wanted = answers - fixed
        self.gram = self.gram + windows @ windows.mT
        self.cross = self.cross + (windows @ wanted[..., None])[..., 0]
        self.square = self.square + wanted.square().sum(1)
        self.energy += float(answers.square().sum())

    def missed(self, kernels: Tensor) -> Tensor:
        """The sum of each channel for kernels C K²."""
        inside = (kernels[:, None] @ self.gram)[:, 0] - 2 * self.cross
        return (self.square + (inside * kernels).sum(1)).clamp_min(0)


class _Fit:
    """The least-squares problems of the channels of one attention."""

    def __init__(self, model: nn.Module, site: Site, adapter: ATConvAdapter) -> None:
        self.attention: Any = model.get_submodule(site.name)
        self.site, self.adapter = site, adapter
        self.mixer: Any = adapter.mixer  # whose layers have the attention's weights
        self.unproject = torch.linalg.pinv(
            in_double(self.mixer.proj.weight)
        ).T  # undoes the output projection
        self.single, self.means = _Squares(), _Squares()  # of positions; of the map and prefix tokens
        self.maps = self.positions = 0

    def add_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A hook behind the attention: add what it answered, and the values around each position."""
        calls: list[tuple[Tensor, Any]] = []

        def keep(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[0], kwargs["grid_size"]))

        with self.mixer.register_forward_pre_hook(keep, with_kwargs=True):
            self.adapter(*args, **kwargs)  # which knows how the attention is called
        ((tokens, grid),) = calls
        values = in_double(self.mixer.value_proj(tokens)).mT
        answers = (
            (in_double(self._answered(args, output)) - in_double(self.mixer.proj.bias)) @ self.unproject
        ).mT
        for value, answer in zip(values, answers, strict=True):
            self._add_map(value, answer, grid)

    def _add_map(self, value: Tensor, answer: Tensor, grid: Any) -> None:
        """Values and answers of one sample, C P+N."""
        count, size = self.mixer.num_prefix_tokens, self.mixer.kernel_size
        image = value[None, :, count:].unflatten(2, grid)
        windows = F.unfold(image, size, padding=size // 2)[0].unflatten(0, (-1, size**2))  # C K² N
        positions, mean = windows.shape[2], windows.mean(2, keepdim=True)
        self.single.add(windows, answer[:, count:])
        self.means.add(positions * mean, answer[:, count:].sum(1, keepdim=True))
        share = positions / (count + positions)
        others = (1 - share) * value[:, :count].mean(1, keepdim=True)
        windows = (share * mean).expand(-1, -1, count)
        self.means.add(positions * windows, positions * answer[:, :count], positions * others)
        self.maps, self.positions = self.maps + 1, self.positions + positions

    def _answered(self, args: tuple[Any, ...], output: Any) -> Tensor:
        """What the attention answered, as tokens. Of a block, the branch of its attention is run again."""
        if isinstance(self.adapter, ATConvBlock):
            x = args[0] if self.adapter.post_norm else self.adapter.norm1(args[0])
            attend = getattr(self.attention, "_attn", None) or self.attention._partition_attn
            output = attend(x)
        if self.adapter.call.returns_weights:
            output = output[0]
        if self.adapter.call.layout == "channels_first":
            output = output.permute(0, 2, 3, 1)
        return output if self.adapter.call.layout == "tokens" else output.flatten(1, 2)

    def set_kernels(self) -> None:
        if not self.positions:
            raise ValueError(f"nothing was replaced. `start` brings no image to {self.site.name}")
        single, means = self.single, self.means
        if not math.isfinite(single.energy + means.energy + float(single.gram.sum())):
            raise ValueError(
                f"nothing was replaced. For `start`, {self.site.name} computes numbers that are not finite: "
                "give finite images, and the model in float32"
            )
        if not self.mixer.proj.weight.any():  # nothing of the kernels is seen: keep those that can learn
            self.site.explained, self.site.exact = 1.0, True
        elif single.energy:
            gram, cross = single.gram + means.gram, single.cross + means.cross
            averages = torch.full_like(cross, 1 / cross.shape[1])
            kernels = _solve(gram, cross)
            residual = (single.missed(kernels) + means.missed(kernels))[:, None].expand_as(cross)
            ridge = residual / self.maps / averages**2
            kernels = _solve(gram + torch.diag_embed(ridge), cross + ridge * averages)
            self._measure(start_at(self.mixer, kernels), averages)

    def _measure(self, kernels: Tensor, averages: Tensor) -> None:
        """Say how near the answers with these kernels are, and with local averages."""
        site, all_of_them = self.site, (self.single, self.means)
        energy = sum(squares.energy for squares in all_of_them)
        site.explained, site.averages = (
            max(0.0, 1 - sum(float(squares.missed(each).sum()) for squares in all_of_them) / energy)
            for each in (kernels, averages)
        )
        site.determined = self.positions >= kernels.shape[1]
        site.exact = site.determined and all(
            is_rounding(float(squares.missed(kernels).sum()), squares.energy, self.mixer.alpha.dtype)
            for squares in all_of_them
        )


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    """The kernels C K² that minimize the squares."""
    inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10)
    return (inverse @ cross[..., None])[..., 0]


def in_double(x: Any) -> Tensor:
    """On the CPU: not every device has float64."""
    return x.to("cpu", torch.float64)
