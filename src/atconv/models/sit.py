"""SiT: a diffusion transformer whose token mixer is attention, ATConv, or both, interleaved.

Three families: `attention` (the original), `atconv` (every attention replaced, no position embedding) and
`hybrid` (blocks 2, 4, 6, … are ATConv, the position embedding stays).

Source: DiT (arXiv 2212.09748), SiT (arXiv 2401.08740), "Attentive Convolution" (arXiv 2510.20092).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from timm.layers import Attention, GELUTanh, Mlp
from torch import Tensor, nn

from atconv.modules import ATConvTokens

__all__ = ["VARIANTS", "SiT", "create_sit"]

MixerFamily = Literal["attention", "atconv", "hybrid"]

_FREQUENCIES = 128  # cosines, and as many sines, of the timestep
_TABLE_LENGTH = 256  # patches along an axis that the position table holds; longer axes are computed


class SiT(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]  # as diffusers' own models
    """The velocity of a stochastic interpolant at (x, t), given class labels. t = 0 is noise, t = 1 data.

    >>> model = SiT(in_channels=1, patch_size=2, hidden_size=64, depth=2, num_heads=4, num_classes=10)
    >>> model(torch.randn(2, 1, 16, 24), torch.tensor([0.1, 0.9]), torch.tensor([3, 7])).shape
    torch.Size([2, 1, 16, 24])

    Args:
        patch_size: size P of the square patches.
        in_channels: channels of x.
        hidden_size, depth, num_heads, mlp_ratio: as in DiT.
        num_classes: classes; 0 for a model without labels.
        label_dropout: share of labels that training replaces by the null label; with 0 there is no null
            label, and so no guidance.
        learn_sigma: predict twice the channels and drop the second half, as the released weights do.
        token_mixer: "attention", "atconv" or "hybrid".
        mixer_act: activation in ATConv; "silu" in the release's REPA variant.
        time_reversed: the weights were trained with t = 0 as data (the release's REPA variant); inputs and
            outputs keep this project's convention.
        mixer_args: options of `ATConvTokens`, such as {"kernel_size": 5}. This and the next two are ours, not
            the paper's.
        position_embedding: add the position embedding; default: as the family does.
        channel_gate: scale what ATConv gives by a gate of its mean over positions, like DiCo's
            (arXiv 2505.11196), which stands before the last projection.

    Raises:
        ValueError: sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["SiTBlock"]  # noqa: RUF012  (as diffusers declares them)
    _repeated_blocks: Any = ["SiTBlock"]  # noqa: RUF012
    positions: Tensor

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        label_dropout: float = 0.1,
        learn_sigma: bool = True,
        token_mixer: MixerFamily = "atconv",
        mixer_act: Literal["gelu_tanh", "silu"] = "gelu_tanh",
        time_reversed: bool = False,
        mixer_args: dict[str, Any] | None = None,
        position_embedding: bool | None = None,
        channel_gate: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(patch_size, in_channels, hidden_size, depth, num_heads, num_classes, label_dropout)
        if token_mixer not in ("attention", "atconv", "hybrid"):
            raise ValueError(f"token_mixer must be attention, atconv or hybrid, got {token_mixer!r}")
        self.patch_size, self.in_channels, self.num_classes = patch_size, in_channels, num_classes
        self.hidden_size, self.mlp_hidden_size = hidden_size, int(hidden_size * mlp_ratio)
        self.time_reversed = time_reversed
        self.has_positions = token_mixer != "atconv" if position_embedding is None else position_embedding
        self.null_label = num_classes if num_classes and label_dropout > 0 else None
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.gradient_checkpointing = False

        self.patch_embed = nn.Conv2d(in_channels, hidden_size, patch_size, patch_size)
        self.time_embed = TimestepEmbedding(hidden_size)
        labels = num_classes + (self.null_label is not None)
        self.label_embed = nn.Embedding(labels, hidden_size) if labels else None
        act: type[nn.Module] = nn.SiLU if mixer_act == "silu" else GELUTanh
        self.blocks = nn.ModuleList()
        for i in range(depth):
            if token_mixer == "atconv" or (token_mixer == "hybrid" and i % 2 == 1):
                mixer: nn.Module = ATConvTokens(hidden_size, act_layer=act, **mixer_args or {})
                gate = nn.Linear(hidden_size, hidden_size) if channel_gate else None
            else:
                mixer, gate = Attention(hidden_size, num_heads=num_heads, qkv_bias=True), None
            self.blocks.append(SiTBlock(hidden_size, mixer, gate, self.mlp_hidden_size))
        self.head = SiTHead(hidden_size, patch_size**2 * self.out_channels)
        if self.has_positions:
            self.register_buffer("positions", position_table(_TABLE_LENGTH, hidden_size), persistent=False)
        self._init_weights()

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> Any:
        """Velocity at (x, t).

        Args:
            x: B C H W; the patch size divides H and W.
            t: B, in [0, 1].
            labels: B class indices, `null_label` for no class; None if the model has no classes.
            return_dict: as in diffusers: true for an output with `sample`, false for a tuple.

        Returns:
            velocity, B C H W.

        Raises:
            ValueError: shapes that do not fit, or labels that are missing or not accepted.
        """
        velocity, _ = self.forward_features(x, t, labels)
        if return_dict is None:
            return velocity
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def forward_features(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, block: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity, and the tokens (B N D) after block number `block`, counted from 1, or None."""
        self._check_input(x, t, labels)
        grid_size = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        condition = self.condition(1 - t if self.time_reversed else t, labels, x.dtype)
        # Contiguous: every later elementwise step keeps these strides.
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous()
        if self.has_positions:
            tokens = tokens + self._positions(*grid_size).to(tokens.dtype)
        features = None
        for i, layer in enumerate(self.blocks, 1):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(layer, tokens, condition, grid_size)
            else:
                tokens = layer(tokens, condition, grid_size)
            if i == block:
                features = tokens
        velocity = self._unpatchify(self.head(tokens, condition), grid_size)
        return (-velocity if self.time_reversed else velocity), features

    def condition(self, t: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Condition of every block, B D: timestep and label embeddings, activated once for all blocks."""
        embedded = self.time_embed(t, dtype)
        if self.label_embed is not None:
            embedded = embedded + self.label_embed(labels)
        return F.silu(embedded)

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of one evaluation for one sample of height × width (convolutions, linear layers,
        attention)."""
        rows, columns = height // self.patch_size, width // self.patch_size
        positions, dim = rows * columns, self.hidden_size
        patch = self.patch_size**2
        ends = positions * dim * patch * (self.in_channels + self.out_channels)
        modulation = dim * dim * (6 * len(self.blocks) + 2) + (2 * _FREQUENCIES + dim) * dim
        mlp = 2 * positions * dim * self.mlp_hidden_size * len(self.blocks)
        mixing = 0
        for block in self.blocks:
            if isinstance(block.mixer, ATConvTokens):
                mixing += block.mixer.macs(rows, columns) + (0 if block.gate is None else dim * dim)
            else:
                mixing += 4 * positions * dim * dim + 2 * positions**2 * dim
        return ends + modulation + mlp + mixing

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding 1 (rows·columns) D: first half of the channels for the column, second half for
        the row, patches counted from 0."""
        table = self.positions
        if max(rows, columns) > len(table):
            table = position_table(max(rows, columns), self.hidden_size).to(table)
        by_column = table[None, :columns].expand(rows, -1, -1)
        by_row = table[:rows, None].expand(-1, columns, -1)
        return torch.cat([by_column, by_row], dim=2).flatten(0, 1)[None]

    def _unpatchify(self, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """B N P·P·C′ → B C H W; of the C′ channels of each pixel the first C are the velocity."""
        patch = self.patch_size
        pixels = tokens.unflatten(2, (patch, patch, self.out_channels))[..., : self.in_channels]
        pixels = pixels.unflatten(1, grid_size).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(tokens.shape[0], self.in_channels, grid_size[0] * patch, grid_size[1] * patch)

    def _check_input(self, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        patch = self.patch_size
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"SiT takes x as B {self.in_channels} H W, got {tuple(x.shape)}")
        height, width = x.shape[2:]
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(
                f"SiT with patches of {patch} takes a height and width that {patch} divides, got "
                f"{height} × {width}: crop or pad to {height // patch * patch or patch} × "
                f"{width // patch * patch or patch}"
            )
        if t.shape != x.shape[:1]:  # len() would fix the batch of an export
            raise ValueError(f"SiT takes one t for each of {len(x)} samples, got shape {tuple(t.shape)}")
        if self.label_embed is None:
            if labels is not None:
                raise ValueError("this SiT has no classes: leave labels out")
        elif labels is None or labels.shape != x.shape[:1]:
            given = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(f"SiT takes one label for each of {len(x)} samples, got {given}")
        elif labels.is_floating_point():
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        elif labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
            low, high = (int(end) for end in labels.aminmax())  # on GPUs this would wait for the device
            if low < 0 or high >= self.label_embed.num_embeddings:
                raise ValueError(
                    f"labels must lie in 0 … {self.label_embed.num_embeddings - 1} "
                    f"(null label: {self.null_label}), got {low} … {high}"
                )

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))  # fans of the flattened patch
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        for weight in (self.time_embed.fc1.weight, self.time_embed.fc2.weight):
            nn.init.normal_(weight, std=0.02)
        if self.label_embed is not None:
            nn.init.normal_(self.label_embed.weight, std=0.02)
        for part in (*self.blocks, self.head):  # every block starts as the identity, and the output is zero
            nn.init.zeros_(part.modulation.weight)
        nn.init.zeros_(self.head.linear.weight)


class TimestepEmbedding(nn.Module):
    """t (B) → B D: cosines and sines of t at 128 frequencies, then a two-layer network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * _FREQUENCIES, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        # Computed here: a buffer would lose its precision where the model is cast.
        steps = torch.arange(_FREQUENCIES, device=t.device)
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * steps / _FREQUENCIES)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.fc2(F.silu(self.fc1(waves.to(dtype))))


class SiTBlock(nn.Module):
    """Token mixer and MLP, each normalized, shifted and scaled before, gated after (adaLN-Zero)."""

    def __init__(self, dim: int, mixer: nn.Module, gate: nn.Module | None, mlp_hidden_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mixer, self.gate = mixer, gate
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(dim, mlp_hidden_size, act_layer=GELUTanh)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, condition: Tensor, grid_size: tuple[int, int]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        mixed = modulate(self.norm1(x), shift1, scale1)
        mixed = self.mixer(mixed, grid_size) if isinstance(self.mixer, ATConvTokens) else self.mixer(mixed)
        if self.gate is not None:
            mixed = mixed * torch.sigmoid(self.gate(mixed.mean(1, keepdim=True)))
        x = torch.addcmul(x, gate1, mixed)
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class SiTHead(nn.Module):
    """Tokens → the pixels of their patches."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, out_features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        return self.linear(modulate(self.norm(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift: B N D with B 1 D."""
    return torch.addcmul(shift, x, 1 + scale)


def position_table(length: int, dim: int) -> Tensor:
    """Sines then cosines of the positions 0 … length − 1 at D/4 frequencies: length × D/2."""
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _check_sizes(
    patch_size: int, in_channels: int, dim: int, depth: int, heads: int, num_classes: int, dropout: float
) -> None:
    if min(patch_size, in_channels, dim, depth, heads) < 1 or num_classes < 0:
        raise ValueError(
            "SiT takes patch_size, in_channels, hidden_size, depth and num_heads of at least 1 and "
            f"num_classes of at least 0, got {(patch_size, in_channels, dim, depth, heads, num_classes)}"
        )
    if dim % heads or dim % 4:
        raise ValueError(
            f"hidden_size must be a multiple of 4 (position embedding) and of num_heads, got {dim} with "
            f"{heads} heads"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"label_dropout must lie in [0, 1), got {dropout}")


_SIZES: dict[str, dict[str, int]] = {
    "s": dict(depth=12, hidden_size=384, num_heads=6),
    "b": dict(depth=12, hidden_size=768, num_heads=12),
    "l": dict(depth=24, hidden_size=1024, num_heads=16),
    "xl": dict(depth=28, hidden_size=1152, num_heads=16),
}
_PREFIXES: dict[str, MixerFamily] = {"sit": "attention", "sit_atconv": "atconv", "sit_hybrid": "hybrid"}

VARIANTS: dict[str, dict[str, Any]] = {
    f"{prefix}_{size}_2": dict(token_mixer=family, patch_size=2, **sizes)
    for prefix, family in _PREFIXES.items()
    for size, sizes in _SIZES.items()
}


def create_sit(name: str, **kwargs: Any) -> SiT:
    """A SiT by name, such as "sit_atconv_s_2"; `kwargs` override its configuration.

    Raises:
        ValueError: no such name, or arguments that do not fit.
        TypeError: an argument that SiT does not have.
    """
    if name not in VARIANTS:
        raise ValueError(f"no SiT {name!r}; there are {', '.join(VARIANTS)}")
    return SiT(**{**VARIANTS[name], **kwargs})
