"""ATConv on maps of one, two and three axes, B C *S."""

from __future__ import annotations

from torch import Tensor

from atconv.modules.base import ATConv
from atconv.modules.stepping import Stepping

__all__ = ["ATConv1d", "ATConv2d", "ATConv3d"]


class _ATConvMap(ATConv):
    def forward(self, x: Tensor) -> Tensor:
        kernel, alpha = self.raw_kernels(x)
        y = self.proj(self._convolve(self.value_proj(x), kernel, alpha))
        return y if self.bias is None else y + self.bias.view([-1] + [1] * (x.ndim - 2))


class ATConv2d(_ATConvMap):
    """Attentive convolution on images: a token mixer, and a drop-in for convolutions. B C H W → B C' H' W'.

    >>> ATConv2d(64)(torch.randn(2, 64, 14, 14)).shape
    torch.Size([2, 64, 14, 14])
    >>> ATConv2d(64, 128, stride=2)(torch.randn(2, 64, 14, 14)).shape
    torch.Size([2, 128, 7, 7])

    Args:
        in_channels: channels C.
        out_channels: of the output; default: C.
        kernel_size: odd K, for all axes or one each.
        stride: of the convolution, for all axes or one each.
        padding: not needed: borders are padded by dilation · (K // 2), so that the map keeps its size. Taken
            where it equals that, or is "same" with stride 1, as code written for convolutions gives it.
        dilation: distance of the weights, for all axes or one each.
        padding_mode: what lies beyond the border: zeros, reflect, replicate or circular.
        act_layer: activation between context projection and kernel generator.
        bias: biases in all four projections; without projections, one of the output.
        routing: False learns one static kernel a channel in place of content-made kernels.
        inhibition: False drops lateral inhibition (λ = 0).
        projections: False leaves out both 1×1 projections: the operator in place of a depthwise convolution.
        context_grid: make the kernels from the means of a K×K grid of cells, not of K² raster stretches; the
            released weights take the latter.
        context_bins: number of bins n; default: as many as a kernel has weights. With `context_grid`, the
            square (1-D: the first power, 3-D: the cube) of a number of cells along each axis.
        kernel_groups: number of kernels a sample, each shared by C / kernel_groups neighboring channels;
            default: C.
        kernel_bias: a learned kernel for each channel, to which the content-made one is added, in place of
            the generator's bias, which all channels share.
        causal: outputs depend on the past alone; for sequences. Takes stride 1, zero padding and no
            `context_grid`.
        chunk: positions that share a kernel, of a causal mixer. Making a kernel costs n·C² multiply-adds, as
            much as n positions of a projection.
        device, dtype: of the parameters.

    Raises:
        ValueError: an option is out of range or does not fit another; in forward, a map of another shape.
        TypeError: an option is of another kind or not known; in forward, an integer map.
    """

    axes = 2


class ATConv3d(_ATConvMap):
    """Attentive convolution on volumes and videos: B C D H W → B C' D' H' W'.

    >>> ATConv3d(16, kernel_size=(1, 3, 3))(torch.randn(2, 16, 4, 14, 14)).shape
    torch.Size([2, 16, 4, 14, 14])

    Args and Raises: as `ATConv2d`.
    """

    axes = 3


class ATConv1d(Stepping, _ATConvMap):
    """Attentive convolution on sequences: B C N → B C' N'.

    >>> ATConv1d(64, kernel_size=7)(torch.randn(2, 64, 100)).shape
    torch.Size([2, 64, 100])

    With `causal`, an output depends on its own position and those before it: the kernel reaches back only and
    is made from running means over the past (`functional.causal_context`), a new one every `chunk` positions.
    `step` takes a sequence one position at a time, with the same result.

    >>> mixer = ATConv1d(64, causal=True).eval()
    >>> state = mixer.initial_state(batch=2)
    >>> y, state = mixer.step(torch.randn(2, 64), state)

    Args and Raises: as `ATConv2d`.
    """

    axes = 1
