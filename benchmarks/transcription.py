"""The baseline: the paper's mathematics written down step by step, with nothing rearranged.

Context is projected at every position and pooled afterwards, one grouped convolution of B·C groups does the
routing, maps are channels-first throughout, nothing is folded. It takes the weights of an AttNet and
computes the same outputs.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atconv.models.attnet import AttNet, ConvGLU
from atconv.modules import ATConv2d


def transcribe(model: AttNet) -> AttNet:
    """A copy whose mixers, channel mixers and norms are the plain ones."""
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for stage in plain.stages:
        for block in stage.blocks:
            block.norm1, block.norm2 = PlainNorm(block.norm1), PlainNorm(block.norm2)
            block.token_mixer = PlainMixer(block.token_mixer)
            block.channel_mixer = PlainChannelMixer(block.channel_mixer)
    return plain


class PlainNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).contiguous()


class PlainMixer(nn.Module):
    """ATConv in the order of the paper."""

    def __init__(self, mixer: ATConv2d) -> None:
        super().__init__()
        self.context_proj, self.kernel_gen = mixer.context_proj, mixer.kernel_gen
        self.value_proj, self.out_proj, self.alpha = mixer.value_proj, mixer.out_proj, mixer.alpha
        self.size = mixer.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        context = F.conv2d(x, self.context_proj.weight[:, :, None, None], self.context_proj.bias)
        pooled = F.adaptive_avg_pool1d(context.flatten(2), self.size**2)
        kernel = self.kernel_gen(F.gelu(pooled))
        kernel = kernel - torch.sigmoid(self.alpha)[:, None] * kernel.mean(2, keepdim=True)
        groups = batch * channels
        routed = F.conv2d(
            self.value_proj(x).reshape(1, groups, height, width),
            kernel.reshape(groups, 1, self.size, self.size),
            padding=self.size // 2,
            groups=groups,
        )
        return self.out_proj(routed.view(batch, channels, height, width))


class PlainChannelMixer(nn.Module):
    """The gated channel mixer, its RMS norm over channels."""

    def __init__(self, glu: ConvGLU) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2, self.norm = glu.fc1, glu.dwconv, glu.fc2, glu.norm

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1)
        gated = F.gelu(self.dwconv(gate)) * value
        if not isinstance(self.norm, nn.Identity):
            size = torch.rsqrt(gated.square().mean(1, keepdim=True) + self.norm.eps)
            gated = gated * size * self.norm.weight[:, None, None]
        return self.fc2(gated)
