"""What distances between sets of images are measured in: features of Inception, or of a classifier that
`atconv train` made."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atconv.data.transforms import EvalTransform
from atconv.engine.reading import read_json
from atconv.engine.run import Run
from atconv.io import file_digest
from atconv.tasks.common.model_file import open_classifier
from atconv.tasks.generation.samples import to_pil
from atconv.tasks.registry import open_run, task_of

__all__ = ["FeatureModel", "InceptionFeatures", "RunFeatures", "open_features"]

_FILE = "weights-inception-2015-12-05-6726825d.pth"
_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_FILE}"
_SHA256_PREFIX = "6726825d"  # torch.hub's convention: the file's name ends with it


class FeatureModel(ABC):
    """Images → features and class logits."""

    title: str
    """how metrics in these features are labeled"""
    inception: bool
    """whether distances may be called FID, KID and IS"""
    accuracy: float | None = None
    """share of held-out images that the network classifies rightly, percent; None where it is not known"""

    @abstractmethod
    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """uint8 N H W C, C 1 or 3 → features N D and logits N K, float32 on the CPU."""


class InceptionFeatures(FeatureModel):
    """The Inception network that FID is defined by, as torch-fidelity has it.

    Args:
        weights: its file; default: torch.hub's folder, downloaded if it is not there.
        device: where it runs.

    Raises:
        ValueError: the weights cannot be downloaded, or are not the right ones.
    """

    title, inception = "Inception", True

    def __init__(self, weights: str | Path | None, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = Path(weights) if weights is not None else _download()
        _check_hash(path)  # torch-fidelity unpickles the file: only the known one may get there
        self.device = device
        names = ["2048", "logits_unbiased"]
        self.model: Any = FeatureExtractorInceptionV3("inception", names, str(path)).to(device)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        features, logits = self.model(pixels.to(self.device))
        return features.float().cpu(), logits.float().cpu()


class RunFeatures(FeatureModel):
    """The features before the classifier of a network that `atconv train` made. Never called FID."""

    inception = False

    def __init__(self, run: str | Path, device: torch.device) -> None:
        opened = open_run(run)
        task = task_of(opened).name
        if task != "classification":
            raise ValueError(f"{run} is a {task} run: it has no classifier; give a run of atconv train")
        model, content = open_classifier(opened)
        self.model, self.transform = model.eval().to(device), EvalTransform(model.pretrained_cfg)
        self.classes, self.device = content["label_names"], device
        self.title, self.accuracy = f"features of {run}", _saved_accuracy(opened)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        inputs = torch.stack([self.transform(to_pil(image)) for image in images]).to(self.device)
        maps = self.model.forward_features(inputs)
        features = self.model.forward_head(maps, pre_logits=True)
        return features.float().cpu(), self.model.forward_head(maps).float().cpu()


def _saved_accuracy(run: Run) -> float | None:
    """What metrics.json of a classification run says."""
    try:
        return float(read_json(run.metrics, {"top1": float})["top1"])
    except (OSError, ValueError):
        return None


def open_features(name: str, weights: str | Path | None, device: torch.device) -> FeatureModel:
    """ "inception", or the folder of a classification run."""
    return InceptionFeatures(weights, device) if name == "inception" else RunFeatures(name, device)


def _download() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
    if path.is_file():
        return path
    advice = f"put {_FILE} into {path.parent}, or use --features RUN, a run of atconv train"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise ValueError(f"FID needs the Inception weights, and this is offline: {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(_URL, str(path), hash_prefix=_SHA256_PREFIX)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"FID needs the Inception weights, which cannot be downloaded ({error}): {advice}"
        ) from error
    return path


def _check_hash(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"no such Inception weights: {path}")
    digest = file_digest(path)
    if not digest.startswith(_SHA256_PREFIX):
        raise ValueError(
            f"{path} is not the Inception file that FID is defined by: its SHA-256 begins with {digest[:8]}, "
            f"not {_SHA256_PREFIX}"
        )
