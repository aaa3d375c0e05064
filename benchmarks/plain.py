"""AttNet written down as its mathematics reads: the baseline that ours is measured against.

Context is projected at every position and pooled afterwards, all kernels of a batch are one grouped
convolution, maps lie channels first, the gated layer is cut in two by `chunk`, and nothing is folded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.models import AttNet
from atconv.models.attnet import ConvGLU
from atconv.modules import ATConv2d

__all__ = ["plain_attnet"]


def plain_attnet(model: AttNet) -> nn.Module:
    """The same network with the same weights, transcribed."""
    plain: Any = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for stage in plain.stages:
        for block in stage.blocks:
            block.token_mixer = PlainATConv(block.token_mixer)
            block.channel_mixer = PlainConvGLU(block.channel_mixer)
    plain.stem = PlainStem(plain.stem)
    return plain


class PlainStem(nn.Module):
    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(stem.conv1, stem.norm1, nn.GELU(), stem.conv2, stem.norm2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PlainATConv(nn.Module):
    def __init__(self, mixer: ATConv2d) -> None:
        super().__init__()
        assert mixer.context_proj is not None
        assert mixer.kernel_gen is not None
        self.kernel_proj = nn.Conv2d(mixer.in_channels, mixer.in_channels, 1)
        self.kernel_proj.weight = nn.Parameter(mixer.context_proj.weight.detach()[:, :, None, None].clone())
        self.kernel_proj.bias = mixer.context_proj.bias
        self.kernel_gen, self.alpha, self.size = mixer.kernel_gen, mixer.alpha, mixer.kernel_size
        self.value_proj, self.proj = mixer.value_proj, mixer.proj

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        context = F.adaptive_avg_pool1d(self.kernel_proj(x).flatten(2), self.size**2)
        kernel = self.kernel_gen(F.gelu(context))
        kernel = kernel - torch.sigmoid(self.alpha)[:, None] * kernel.mean(2, keepdim=True)
        routed = F.conv2d(
            self.value_proj(x).reshape(1, batch * channels, height, width),
            kernel.reshape(batch * channels, 1, self.size, self.size),
            padding=self.size // 2,
            groups=batch * channels,
        )
        return self.proj(routed.reshape(batch, channels, height, width))


class PlainConvGLU(nn.Module):
    def __init__(self, glu: ConvGLU) -> None:
        super().__init__()
        halves = (glu.gate_proj, glu.value_proj)
        self.fc1 = nn.Conv2d(glu.gate_proj.in_channels, 2 * glu.hidden, 1)
        self.fc1.weight = nn.Parameter(torch.cat([half.weight.detach() for half in halves]))
        self.fc1.bias = nn.Parameter(
            torch.cat([half.bias.detach() for half in halves if half.bias is not None])
        )
        self.dwconv, self.norm, self.fc2 = glu.dwconv, glu.norm, glu.proj

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1)
        return self.fc2(self.norm(F.gelu(self.dwconv(gate)) * value))
