# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune AttNet on your folder
#
# You need a folder with one folder for each class. This notebook makes one from scans of digits, trains a classifier on it, fine-tunes
# that on another folder, and uses it. With your own images, only the paths change. Under a minute on a CPU.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_digits

os.chdir(tempfile.mkdtemp())
digits = load_digits()
for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    folder = (
        Path("digits", str(label))
        if i % 4
        else Path("even-odd", ("even", "odd")[label % 2])
    )
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 15.9).astype("uint8")).resize((16, 16)).save(
        folder / f"{i}.png"
    )
for name in ("digits", "even-odd"):
    print(
        name,
        {
            folder.name: len(list(folder.iterdir()))
            for folder in sorted(Path(name).iterdir())
        },
    )

# %% [markdown]
# ## Train from scratch
#
# A recipe is a set of options, and every field can be overridden. `digits` is a small network for small gray images.

# %% language="bash"
# atconv train digits/ --config digits --epochs 8 --out runs/digits --tracker none

# %% [markdown]
# The command has split the folder into train, validation and test, kept the best epoch on the validation split, and evaluated that on
# the test split. All of it lies in the run's folder:

# %%
print(*sorted(path.name for path in Path("runs/digits").iterdir()), sep="\n")

# %%
plt.figure(figsize=(10, 4))
plt.imshow(plt.imread("runs/digits/curves.png"))
_ = plt.axis("off")

# %% [markdown]
# ## Fine-tune
#
# Another folder, other classes, a quarter as many images: is the digit even or odd? `--checkpoint` takes a run, a `.safetensors` file, or
# the authors' `.pth` file; the head is newly initialized. The recipe `finetune` has small steps, smaller near the input.

# %% language="bash"
# atconv train even-odd/ --checkpoint runs/digits --config digits --epochs 6 \
#     --lr 1e-3 --layer-decay 0.8 --mixup 0 --out runs/even-odd --tracker none

# %% [markdown]
# For ImageNet weights the command is `atconv train photos/ --checkpoint AttNet_T2.pth --config finetune`.
#
# ## Use it

# %%
import atconv

predictor = atconv.load("runs/even-odd")
paths = sorted(Path("even-odd").glob("*/*.png"))[::60]
results = predictor(paths)

fig, axes = plt.subplots(1, len(paths), figsize=(1.3 * len(paths), 1.8))
for ax, path, result in zip(axes, paths, results, strict=True):
    ax.imshow(Image.open(path), cmap="gray")
    ax.set_title(
        f"{result.classes[0]}\n{100 * result.probabilities[0]:.0f} %", fontsize=9
    )
    ax.axis("off")

# %%
predictor.evaluate("even-odd").to_dict()["top1"]

# %% [markdown]
# The best model is in timm's format, so timm opens it too:

# %%
import timm

model = timm.create_model("local-dir:runs/even-odd", pretrained=True)
print(type(model).__name__, sum(p.numel() for p in model.parameters()), "parameters")

# %% [markdown]
# Next: [Train, evaluate, predict](../guides/train.md) has data formats, resume and distillation; [Export](../guides/export.md) ships it.
