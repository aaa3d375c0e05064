# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The operator in your model
#
# ATConv takes the place of self-attention or of a convolution: a map goes in, a map of the same shape comes out. This notebook puts
# it into a small network, trains that on real scans of digits, and looks at the kernels it makes. It takes a few seconds on a CPU.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from atconv import ATConv2d, functional

_ = torch.manual_seed(0)

# %% [markdown]
# ## A drop-in token mixer
#
# `ATConv2d(C)` maps B C H W to B C H W, for any height and width. Its cost is linear in the number of positions, where attention's
# is quadratic:

# %%
mixer = ATConv2d(64)
for size in (14, 28, 56):
    y = mixer(torch.randn(2, 64, size, size))
    positions = size * size
    attention = 4 * positions * 64**2 + 2 * positions**2 * 64
    print(
        f"{tuple(y.shape)}: {mixer.macs(size, size) / 1e6:6.1f} M multiply-adds, attention {attention / 1e6:7.1f} M"
    )

# %% [markdown]
# ## What happens inside
#
# Four steps, each a pure function. The map is averaged into nine bins, row by row. Two small layers turn the bins of each channel into a
# 3×3 kernel. Its weights compete: a share λ of their mean is subtracted. Then each channel of each sample is convolved with its own
# kernel.

# %%
x = torch.randn(2, 64, 14, 14)
context = functional.pool_context(x, 9)
kernel = functional.context_to_kernel(
    context,
    mixer.context_proj.weight,
    mixer.context_proj.bias,
    mixer.kernel_gen.weight,
    mixer.kernel_gen.bias,
)
kernel = functional.lateral_inhibition(kernel, mixer.alpha)
print("context", tuple(context.shape), "→ kernels", tuple(kernel.shape))
assert torch.allclose(kernel, mixer.kernels(x), atol=1e-6)

# %% [markdown]
# ## In a network
#
# A block as in a transformer: the token mixer, then an MLP, each behind a norm and with a shortcut.


# %%
class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.mixer = ATConv2d(dim)  # was: self-attention
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    Block(32),
    Block(32),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(512, 10),
)

# %% [markdown]
# 1,797 scans of 8 × 8 pixels come with scikit-learn. The last 297 are for testing.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(6):
    for batch in torch.randperm(1500).split(64):
        loss = F.cross_entropy(model(images[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

with torch.inference_mode():
    accuracy = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
print(f"{100 * accuracy:.1f} % of {len(labels[test])} test images")

# %%
plt.figure(figsize=(6, 2.2))
plt.plot(losses)
plt.xlabel("step")
_ = plt.ylabel("loss")

# %% [markdown]
# ## Kernels follow the content
#
# A static convolution would show the same square in every row. Here each image gets its own. The channel shown is the one whose
# kernels differ most between images.

# %%
block = model[1]
with torch.inference_mode():
    kernels = block.mixer.kernels(block.norm1(model[0](images[test][:6])))
channel = kernels.std(0).mean((1, 2)).argmax()

fig, axes = plt.subplots(2, 6, figsize=(7, 2.4))
limit = kernels[:, channel].abs().max()
for i in range(6):
    axes[0, i].imshow(images[test][i, 0], cmap="gray")
    axes[1, i].imshow(kernels[i, channel], cmap="RdBu", vmin=-limit, vmax=limit)
for ax in axes.flat:
    ax.axis("off")

# %% [markdown]
# ## Tokens
#
# In a transformer that works on tokens, use `ATConvTokens`: B N C in, B N C out. A square grid is inferred. Give any other. With a
# class token, say `num_prefix_tokens=1`.

# %%
from atconv import ATConvTokens

mixer = ATConvTokens(384)
print(
    tuple(mixer(torch.randn(2, 196, 384)).shape),
    tuple(mixer(torch.randn(2, 192, 384), grid_size=(12, 16)).shape),
)

# %% [markdown]
# Next: the [guide](../guides/operator.md) has options and limits, and [Replace attention](replace.py) does this in a model that
# exists.
