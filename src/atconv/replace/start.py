"""Where replaced layers start: at static kernels, with routing at zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.modules.tokens import mix_prefix
from atconv.replace.adapters import ATConvAdapter, ATConvBlock
from atconv.replace.counting import Example, arguments_of
from atconv.replace.families import Site

__all__ = ["fit_kernels", "start_at"]

_ROUNDING = 1e-6  # share of the squares of the answers that is rounding


def start_at(mixer: Any, kernels: Tensor) -> None:
    """Begin with kernels that are C K² after inhibition: λ starts at 1/2, which leaves half of their mean."""
    nn.init.zeros_(mixer.kernel_gen.weight)
    mixer.kernel_bias.copy_(kernels + kernels.mean(1, keepdim=True))


@torch.no_grad()
def fit_kernels(
    model: nn.Module, sites: Sequence[Site], adapters: Sequence[ATConvAdapter], inputs: Example
) -> None:
    """Start each adapter at the static kernels that come nearest to its attention in one pass of the model.

    Before its output projection, attention answers o_p = Σ_q a_pq v_q at position p. The kernel of a channel
    minimizes Σ_p (o_p − Σ_δ k_δ v_{p+δ})² over the positions of all maps. `site.explained` says how near
    that is, class and register tokens included, which take means whatever the kernels are. `site.exact` is
    for a function that is the same on all tokens, where there are positions enough to tell.

    Raises:
        ValueError: the model does not run on the inputs.
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


class _Fit:
    """The least-squares problems of the channels of one attention."""

    def __init__(self, model: nn.Module, site: Site, adapter: ATConvAdapter) -> None:
        self.attention: Any = model.get_submodule(site.name)
        self.site, self.adapter = site, adapter
        self.mixer: Any = adapter.mixer  # whose layers have the attention's weights
        self.unproject = torch.linalg.pinv(_double(self.mixer.proj.weight)).T  # undoes the output projection
        self.gram: Any = 0
        self.cross: Any = 0
        self.energy = 0.0
        self.positions = 0
        self.prefix: list[tuple[Tensor, Tensor, Tensor, int]] = []
        """of each sample: values and answers of the prefix tokens, mean window of the map, its positions"""

    def add_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A hook behind the attention: add what it answered, and the values around each position."""
        calls: list[tuple[Tensor, Any]] = []

        def keep(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[0], kwargs["grid_size"]))

        with self.mixer.register_forward_pre_hook(keep, with_kwargs=True):
            self.adapter(*args, **kwargs)  # which knows how the attention is called
        ((tokens, grid),) = calls
        prefix, size = self.mixer.num_prefix_tokens, self.mixer.kernel_size
        values = _double(self.mixer.value_proj(tokens))
        answers = (_double(self._answered(args, output)) - _double(self.mixer.proj.bias)) @ self.unproject
        for value, answer in zip(values, answers, strict=True):
            image = value[prefix:].T.unflatten(1, grid)[None]
            windows = F.unfold(image, size, padding=size // 2)[0].unflatten(0, (-1, size**2))  # C K² N
            self.gram = self.gram + windows @ windows.mT
            self.cross = self.cross + (windows @ answer[prefix:].T[..., None])[..., 0]
            self.energy += float(answer[prefix:].square().sum())
            self.positions += windows.shape[2]
            self.prefix.append((value[:prefix], answer[:prefix], windows.mean(2), windows.shape[2]))

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
        if not self.mixer.proj.weight.any():  # nothing of the kernels is seen: keep those that can learn
            self.site.explained, self.site.exact = 1.0, True
        elif self.energy:
            inverse = torch.linalg.pinv(self.gram, hermitian=True, rtol=1e-10)
            kernels = (inverse @ self.cross[..., None])[..., 0]
            self._measure(kernels)
            start_at(self.mixer, kernels.to(self.mixer.proj.weight))

    def _measure(self, kernels: Tensor) -> None:
        """Say how near the answers with these kernels are."""
        left, prefix_left = self.energy - float((kernels * self.cross).sum()), 0.0
        prefix_energy = sum(float(answer.square().sum()) for _, answer, _, _ in self.prefix)
        for value, answer, window, positions in self.prefix if self.mixer.num_prefix_tokens else []:
            routed = (kernels * window).sum(1).expand(1, positions, -1)
            prefix_left += float((answer - mix_prefix(value[None], routed)).square().sum())
        same = left <= _ROUNDING * self.energy and prefix_left <= _ROUNDING * prefix_energy
        site = self.site
        site.explained = max(0.0, 1 - (left + prefix_left) / (self.energy + prefix_energy))
        site.determined = self.positions >= kernels.shape[1]
        site.exact = same and site.determined


def _double(x: Any) -> Tensor:
    return x.to("cpu", torch.float64)
