"""AttNet: image backbones whose token mixer is ATConv, registered with timm.

Source: "Attentive Convolution", arXiv 2510.20092. `atconv.load_release` reads the authors' checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.fx
from timm.layers import (
    DropPath,
    LayerScale2d,
    NormMlpClassifierHead,
    RmsNorm2d,
    calculate_drop_path_rates,
    get_device_dtype,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from atconv.mixers import create_mixer
from atconv.models.published import NO_DILATION, NO_DOWNLOAD
from atconv.modules import ATConv2d
from atconv.ops.gated_product import GELU
from atconv.ops.gated_unit import fused_gated_unit
from atconv.ops.layer_norm import LayerNorm2d
from atconv.ops.layout import fast_layout
from atconv.ops.residual import add_branch
from atconv.ops.static_conv import DepthwiseConv2d, PointwiseConv2d

__all__ = ["VARIANTS", "AttNet"]
torch.fx.wrap("fast_layout")  # a node of torch.fx's graphs


class Stem(nn.Module):
    """Conv3×3 → BN → GELU → Conv3×3 → BN, total stride 4, 2 or 1: B in H W → B dim H/s W/s."""

    def __init__(self, in_chans: int, dim: int, stride: int = 4, **dd: Any) -> None:
        super().__init__()
        if stride not in (1, 2, 4):
            raise ValueError(f"AttNet: stem_stride must be 4, 2 or 1, got {stride}")
        self.conv1 = _conv3x3(in_chans, dim // 2, 2 if stride > 1 else 1, **dd)
        self.norm1 = nn.BatchNorm2d(dim // 2, **dd)
        self.act = GELU()
        self.conv2 = _conv3x3(dim // 2, dim, 2 if stride > 2 else 1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        # Twice: an image of one channel has both layouts at once, and its convolution then keeps the other.
        x = fast_layout(self.conv1(fast_layout(x)))
        return self.norm2(self.conv2(self.act(self.norm1(x))))


class ConvGLU(nn.Module):
    """The channel mixer: a gated linear unit whose gate sees its 3×3 neighborhood. B C H W → same.

    u = GELU(DWConv3×3(gate)) · value, optionally RMS-normalized over channels, then 1×1 back to C. Without
    `conv` the gate sees its own position only, and the token mixer alone mixes space.
    """

    def __init__(self, dim: int, mlp_ratio: float, norm: bool, conv: bool = True, **dd: Any) -> None:
        super().__init__()
        self.hidden = hidden = 2 * int(dim * mlp_ratio) // 3
        # A layer each: halves of a common output would be copied before they are used.
        self.gate_proj = PointwiseConv2d(dim, hidden, 1, **dd)
        self.value_proj = PointwiseConv2d(dim, hidden, 1, **dd)
        self.dwconv: nn.Module = nn.Identity()
        if conv:
            self.dwconv = DepthwiseConv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd)
        self.act = GELU()
        self.norm = RmsNorm2d(hidden, eps=1e-6, **dd) if norm else nn.Identity()
        self.proj = PointwiseConv2d(hidden, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            y = fused_gated_unit(self, x)
            if y is not None:
                return y
        return self.proj(self.norm(self.act(self.dwconv(self.gate_proj(x))) * self.value_proj(x)))

    def macs(self, height: int, width: int) -> int:
        taps = 0 if isinstance(self.dwconv, nn.Identity) else 9
        return height * width * self.hidden * (3 * self.proj.out_channels + taps)


class AttNetBlock(nn.Module):
    """x + dp(ls(mixer(LN(x)))), then x + dp(ls(glu(LN(x)))). B C H W → same."""

    def __init__(
        self, dim: int, token_mixer: nn.Module, mlp_ratio: float, glu_norm: bool, glu_conv: bool,
        ls_init_value: float | None, drop_path_rate: float, **dd: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        scale = nn.Identity if ls_init_value is None else partial(LayerScale2d, dim, ls_init_value, **dd)
        drop_path = partial(DropPath, drop_path_rate) if drop_path_rate > 0 else nn.Identity
        self.norm1 = LayerNorm2d(dim, eps=1e-6, **dd)
        self.token_mixer: Any = token_mixer
        self.ls1, self.drop_path1 = scale(), drop_path()
        self.norm2 = LayerNorm2d(dim, eps=1e-6, **dd)
        self.channel_mixer = ConvGLU(dim, mlp_ratio, glu_norm, glu_conv, **dd)
        self.ls2, self.drop_path2 = scale(), drop_path()

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            x = x + self.drop_path1(self.ls1(self.token_mixer(self.norm1(x))))
            return x + self.drop_path2(self.ls2(self.channel_mixer(self.norm2(x))))
        else:  # noqa: RET505  (TorchScript compiles what follows a return)
            x = add_branch(x, self.token_mixer(self.norm1(x)), self.ls1, self.drop_path1)
            return add_branch(x, self.channel_mixer(self.norm2(x)), self.ls2, self.drop_path2)

    def macs(self, height: int, width: int) -> int:
        return self.token_mixer.macs(height, width) + self.channel_mixer.macs(height, width)


class AttNetStage(nn.Module):
    """Optional Conv3×3 stride 2 → BN, then blocks. B in H W → B out H/2 W/2 (H W without it)."""

    def __init__(self, in_dim: int, dim: int, downsample: bool, blocks: list[nn.Module], **dd: Any) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = nn.Sequential(_conv3x3(in_dim, dim, 2, **dd), nn.BatchNorm2d(dim, **dd))
        self.blocks = nn.Sequential(*blocks)

    def no_weight_decay(self: nn.Module) -> set[str]:
        """Patterns of the mixers' α and position biases. With `features_only=True` only stages are left."""
        return {"*.alpha", "*.relative_position_bias_table", "*.position_bias"}

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, self.downsample(x))
        return self.blocks(self.downsample(x))


class AttNet(nn.Module):
    """AttNet backbone with classifier. B in_chans H W → B num_classes.

    Any H, W: stride 2 rounds up. Build it by name: `timm.create_model("attnet_t2", num_classes=10)`.

    Args:
        in_chans: channels of the input image.
        num_classes: classes of the head, 0 for none (pooled, normalized features).
        global_pool: "avg", or "" for none.
        depths, dims, mlp_ratios: blocks, channels and channel-mixer expansion of each of the four stages.
        token_mixer: a name of `atconv.mixers`, or one for each stage.
        mixer_args: options of that mixer, such as {"kernel_size": 5}, or one mapping for each stage.
        glu_norm: RMS-normalize the gated product of every channel mixer.
        glu_conv: the 3×3 convolution of every channel mixer; without it only token mixers mix space.
        ls_init_value: initial LayerScale, None for no LayerScale.
        stem_stride: total stride of the stem: 4, or 2 or 1 for small images.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.

    Raises:
        ValueError: a list that has not 4 entries, another stem stride, an unknown mixer or option of it.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 16, 3),
        dims: Sequence[int] = (64, 128, 288, 512),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        token_mixer: str | Sequence[str] = "atconv",
        mixer_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        glu_norm: bool = True,
        glu_conv: bool = True,
        ls_init_value: float | None = 1e-6,
        stem_stride: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        mixers: Any = token_mixer if isinstance(token_mixer, (list, tuple)) else [token_mixer] * 4
        options = mixer_args if isinstance(mixer_args, Sequence) else [mixer_args or {}] * 4
        stages = dict(depths=depths, dims=dims, mlp_ratios=mlp_ratios, token_mixer=mixers, mixer_args=options)
        for name, values in stages.items():
            if len(values) != 4:
                raise ValueError(f"AttNet has 4 stages: {name} must have 4 entries, got {values}")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem = Stem(in_chans, dims[0], stem_stride, **dd)
        rates: Iterator[float] = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))  # type: ignore[arg-type]
        self.stages = nn.Sequential()
        self.feature_info = []
        for i, dim in enumerate(dims):
            blocks: list[nn.Module] = []
            for block in range(depths[i]):
                mixer = create_mixer(mixers[i], dim, block, **dd, **options[i])
                glu = (mlp_ratios[i], glu_norm, glu_conv)
                blocks += [AttNetBlock(dim, mixer, *glu, ls_init_value, next(rates), **dd)]
            self.stages.append(AttNetStage(dims[max(i - 1, 0)], dim, i > 0, blocks, **dd))
            self.feature_info += [dict(num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}")]
        norm = partial(LayerNorm2d, eps=1e-5)
        self.head = NormMlpClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=norm, **dd
        )
        self.apply(_init_weights)

    no_weight_decay = AttNetStage.no_weight_decay

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups in order of depth, for layer-wise learning-rate decay."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else fine)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Replace the classifier by a newly initialized one with `num_classes` outputs (0: none)."""
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.head.reset(num_classes, global_pool, reset_other, in_features=self.num_features, **dd)
        _init_weights(self.head.fc)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Final features, and outputs of stages `indices` (last n, or None for all). `norm` has no effect."""
        if output_fmt != "NCHW":
            raise ValueError(f"AttNet: output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages (and head) that the given intermediates do not need."""
        take, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if cut or prune_head or prune_norm:
            self.reset_classifier(0, "" if cut or prune_head else None, reset_other=True)
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """B in_chans H W → B C H/(8·stem_stride) W/(8·stem_stride), before pooling."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, normalize, classify; `pre_logits` stops before the classifier."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def macs(self, height: int = 224, width: int = 224) -> int:
        """Multiply-adds for one image: of convolutions, linear layers and the dynamic convolution."""
        total = self.num_features * self.num_classes
        for part in (self.stem, *self.stages):
            for conv in getattr(part, "downsample", part).modules():
                if isinstance(conv, nn.Conv2d):
                    height, width = -(-height // conv.stride[0]), -(-width // conv.stride[1])
                    total += height * width * conv.weight.numel()
            total += sum(block.macs(height, width) for block in getattr(part, "blocks", ()))
        return total


def _conv3x3(in_channels: int, out_channels: int, stride: int, **dd: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, **dd)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ATConv2d) and not module.routing:  # its kernel starts as every convolution's does
        nn.init.normal_(module.static_kernel, std=0.02)


# Differences from the defaults of `AttNet`, which are those of attnet_t2.
VARIANTS: dict[str, dict[str, Any]] = {
    "attnet_xxs": dict(depths=(2, 2, 4, 2), dims=(32, 64, 128, 240), glu_norm=False, ls_init_value=None),
    "attnet_xs": dict(depths=(2, 2, 7, 2), dims=(40, 80, 160, 320), glu_norm=False),
    "attnet_s": dict(depths=(2, 3, 10, 3), dims=(40, 80, 160, 320), glu_norm=False, ls_init_value=None),
    "attnet_t1": dict(depths=(2, 3, 12, 3), dims=(48, 96, 224, 384)),
    "attnet_t2": dict(depths=(3, 3, 16, 3), dims=(64, 128, 288, 512)),
    "attnet_t3": dict(depths=(4, 4, 26, 4), dims=(72, 144, 320, 576)),
    "attnet_t4": dict(depths=(5, 5, 28, 5), dims=(96, 192, 384, 768)),
}

# Image size, mean, standard deviation and crop are timm's defaults, those of ImageNet.
_CFG = dict(
    pool_size=(7, 7),
    first_conv="stem.conv1",
    classifier="head.fc",
    license="mit",
    paper_ids="arXiv:2510.20092",
    paper_name="Attentive Convolution: Unifying the Expressivity of Self-Attention with "
    "Convolutional Efficiency",
)
default_cfgs = generate_default_cfgs(dict.fromkeys(VARIANTS, _CFG))


def _entry_point(name: str) -> Callable[..., AttNet]:
    """Register a variant with timm under its name."""

    def create(pretrained: bool = False, **kwargs: Any) -> AttNet:
        sources = (kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
        config = resolve_pretrained_cfg(name, *sources)
        if pretrained and not (config.has_weights or config.state_dict):
            raise RuntimeError(NO_DOWNLOAD.format(name=name))
        if kwargs.pop("output_stride", 32) != 32:
            raise ValueError(NO_DILATION)
        features = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
        return build_model_with_cfg(AttNet, name, pretrained, feature_cfg=features, **VARIANTS[name] | kwargs)

    create.__name__ = create.__qualname__ = name
    return register_model(create)


attnet_xxs, attnet_xs, attnet_s, attnet_t1, attnet_t2, attnet_t3, attnet_t4 = map(_entry_point, VARIANTS)
