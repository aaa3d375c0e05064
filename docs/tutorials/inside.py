# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside a network
#
# Does the network use its content-made kernels? How strongly do the weights compete? What speaks for an answer? `atconv analyze` prints a
# page. This notebook calls the functions behind it on a small AttNet that it trains first. Under a minute on a CPU.

# %%
import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from atconv.analysis.explanation import class_activation
from atconv.analysis.measures import redundancy, routing_variance
from atconv.analysis.receptive_field import receptive_field
from atconv.analysis.routing import collect_kernels
from atconv.modules import inhibition_strength

_ = torch.manual_seed(0)

digits = load_digits()
images = F.interpolate(
    torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, scale_factor=2
)
labels = torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

model = timm.create_model(
    "attnet_xxs",
    in_chans=1,
    num_classes=10,
    stem_stride=1,
    depths=(1, 1, 2, 1),
    dims=(16, 32, 48, 64),
    mlp_ratios=(2, 2, 2, 2),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(4):
    for batch in torch.randperm(1500).split(64):
        loss = F.cross_entropy(
            model.train()(images[train][batch]), labels[train][batch]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.inference_mode():
    print(
        f"{100 * (model(images[test]).argmax(1) == labels[test]).float().mean():.1f} % of the test images"
    )

# %% [markdown]
# ## The kernels
#
# `collect_kernels` runs the model and returns every kernel it made, by layer. Below, one channel of every layer for six images.

# %%
shown, classes = images[test][:64], labels[test][:64]
kernels = collect_kernels(model, shown)

fig, axes = plt.subplots(1 + len(kernels), 6, figsize=(6, 1.05 * (1 + len(kernels))))
for i in range(6):
    axes[0, i].imshow(shown[i, 0], cmap="gray")
for row, (name, kernel) in zip(axes[1:], kernels.items(), strict=True):
    channel = kernel.std(0).mean((1, 2)).argmax()
    limit = kernel[:, channel].abs().max()
    for i in range(6):
        row[i].imshow(kernel[i, channel], cmap="RdBu", vmin=-limit, vmax=limit)
    row[0].set_ylabel(
        name.removesuffix(".token_mixer"), rotation=0, ha="right", fontsize=8
    )
for ax in axes.flat:
    ax.set_xticks([])
    ax.set_yticks([])

# %% [markdown]
# ## Do they follow the content?
#
# Routing variance is the share of a kernel's mean square weight that varies from image to image: 0 for a static convolution. The second
# number is the part of it that goes with the class.

# %%
for name, kernel in kernels.items():
    variance = routing_variance(kernel, classes)
    print(
        f"{name:32} varies {variance.total:.2f}, with the class {variance.share_between:.2f}"
    )

# %% [markdown]
# An untrained network's kernels follow the content too, so compare before you conclude:

# %%
untrained = timm.create_model(
    "attnet_xxs",
    in_chans=1,
    num_classes=10,
    stem_stride=1,
    depths=(1, 1, 2, 1),
    dims=(16, 32, 48, 64),
    mlp_ratios=(2, 2, 2, 2),
).eval()
for name, kernel in collect_kernels(untrained, shown).items():
    variance = routing_variance(kernel, classes)
    print(
        f"{name:32} varies {variance.total:.2f}, with the class {variance.share_between:.2f}"
    )

# %% [markdown]
# ## How strongly do weights compete?
#
# λ = sigmoid(α) for each channel. It starts at 0.5.

# %%
for name, strength in inhibition_strength(model).items():
    print(f"{name:32} λ {strength.min():.3f} … {strength.max():.3f}")

# %% [markdown]
# ## What speaks for an answer, and where does the network look?
#
# `class_activation` is each position's part in the logit of the answer. `receptive_field` is the gradient of the middle position of each
# stage's map.

# %%
with torch.no_grad():
    answers = model(shown[:6]).argmax(1)
maps = class_activation(model, shown[:6], answers, "stages.1")

fig, axes = plt.subplots(1, 6, figsize=(8, 1.8))
for i, ax in enumerate(axes):
    ax.imshow(shown[i, 0], cmap="gray", extent=(0, 1, 0, 1))
    ax.imshow(
        maps[i],
        cmap="inferno",
        alpha=0.6,
        extent=(0, 1, 0, 1),
        interpolation="bilinear",
    )
    ax.set_title(f"answer {answers[i]}", fontsize=9)
    ax.axis("off")

# %%
fig, axes = plt.subplots(1, 3, figsize=(5, 1.9))
for stage, ax in enumerate(axes):
    field = receptive_field(
        lambda x, stage=stage: model.stages[: stage + 1](model.stem(x)), shown[:16]
    )
    ax.imshow(field.sqrt(), cmap="magma")
    ax.set_title(f"stage {stage}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## Do channels say different things?
#
# The cosine similarity between channels behind a mixer: 1 for identical channels, 0 for orthogonal ones.

# %%
outputs = {}
hooks = [
    model.get_submodule(name).register_forward_hook(
        lambda module, args, y, name=name: outputs.update({name: y})
    )
    for name in kernels
]
with torch.inference_mode():
    model(shown)
for hook in hooks:
    hook.remove()
for name, output in outputs.items():
    print(f"{name:32} {redundancy(output)}")

# %% [markdown]
# For a run of `atconv train`, `atconv analyze RUN IMAGES` makes all of this into one page, also for several runs next to each other:
# [Interpret](../guides/interpret.md).
