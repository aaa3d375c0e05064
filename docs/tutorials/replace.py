# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Replace attention
#
# `atconv.replace_attention(model)` takes self-attention out of a model that you have and puts ATConv in. This notebook trains a small
# ViT on scans of digits, replaces its attention, and trains it a little further. A minute on a CPU.

# %%
import copy

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import atconv

_ = torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

# %% [markdown]
# ## A ViT with attention
#
# Patches of 2 × 2 pixels, 4 × 4 tokens, three blocks; the mean of the tokens is classified.

# %%
vit = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10,
    embed_dim=64, depth=3, num_heads=2, class_token=False, global_pool="avg",
)  # fmt: skip


def fit(model, epochs, groups):
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 24)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(64):
            loss = F.cross_entropy(
                model.train()(images[train][batch]), labels[train][batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def accuracy(model):
    with torch.inference_mode():
        right = model.eval()(images[test]).argmax(1) == labels[test]
    return 100 * right.float().mean().item()


fit(vit, 25, [{"params": vit.parameters(), "lr": 3e-3}])
print(f"attention: {accuracy(vit):.1f} % of the test images")

# %% [markdown]
# ## Replace it
#
# The model is changed in place, and the report says what changed and what it costs. On 4 × 4 tokens there is little to save. At
# 224² a DeiT-S goes from 4.6 to 3.6 GMACs.

# %%
model = copy.deepcopy(vit)
print(atconv.replace_attention(model))

# %% [markdown]
# Value and output projections are copied from the attention, and kernels start near local averages. What the attention routed is lost until
# the mixers learn it:

# %%
print(f"ATConv, before training: {accuracy(model):.1f} %")

# %% [markdown]
# ## Train it further
#
# New mixers get a higher learning rate than the rest. The optimizer is made after the replacement.

# %%
new = [p for name, p in model.named_parameters() if ".attn." in name]
old = [p for name, p in model.named_parameters() if ".attn." not in name]
fit(model, 4, [{"params": new, "lr": 3e-3}, {"params": old, "lr": 1e-3}])
print(f"ATConv, after 4 epochs: {accuracy(model):.1f} %")

# %% [markdown]
# ## Choose blocks
#
# `every=2`, `blocks=[0, 1]` and `where=` choose what to replace. What cannot be replaced is named, with the reason.

# %%
hybrid = copy.deepcopy(vit)
print(atconv.replace_attention(hybrid, blocks=[0, 1]))

# %% [markdown]
# One small run says little. [The study](../results/replace.md) repeats this on Fashion-MNIST with three seeds. The
# [guide](../guides/replace.md) lists the models of timm, torchvision, transformers and diffusers that it knows.
