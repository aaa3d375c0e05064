"""`atconv data check`: a look at DATA before training, with embeddings of any timm model or run."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from atconv.analysis.features import pooled_features
from atconv.data.annotated import AnnotatedSplit
from atconv.data.checks.check import check_data, open_data
from atconv.data.checks.images import Images
from atconv.data.checks.page import MARKER, write_report
from atconv.data.config import DataConfig, MaskOptions
from atconv.data.imbalance import log_classes
from atconv.engine.options import PositiveInt, Share
from atconv.engine.progress import progress
from atconv.io import check_target, count_of
from atconv.tasks.classification.embedding import Backbone

__all__ = ["CheckOptions", "check"]

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EmbeddingOptions:
    """What says which images are alike."""

    group: ClassVar[str] = "embeddings"

    model: str | None = None
    """model by timm's name, or the folder of a run of atconv train; without it no wrong labels are found"""
    weights: str | None = None
    """file of the model's weights; default: timm's pretrained ones"""
    min_similarity: Share = 0.95
    """cosine similarity of embeddings, around their mean, from which on images are near copies"""
    batch_size: PositiveInt = 32
    """images in one forward pass"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where the model runs"""


@dataclass(kw_only=True)
class CheckOptions(EmbeddingOptions, MaskOptions, DataConfig):
    """Options of `atconv data check`."""


def check(options: CheckOptions, out: str | None = None) -> Path:
    """Look at DATA before training: counts, unreadable files, copies, likely wrong labels, boxes, masks.

    Args:
        options: DATA and what to look at it with.
        out: folder for index.html, findings.csv and check.json (default: runs/check-DATA).

    Returns:
        index.html.

    Raises:
        FileNotFoundError, ValueError: no such data, model or run, or the folder holds something else or lies
            in DATA.
    """
    data = Path(options.data).resolve()
    folder = Path(out) if out is not None else Path("runs") / f"check-{data.name}"
    if data.is_dir() and folder.resolve().is_relative_to(data):
        raise ValueError(f"{folder} lies in DATA, where nothing is written: name another folder with --out")
    check_target(folder, MARKER, "check")
    embed = None if options.model is None else Embedder(options)
    masks = MaskOptions(**{field.name: getattr(options, field.name) for field in fields(MaskOptions)})
    splits = open_data(options, masks)
    report = check_data(options.data, splits, options.min_similarity, embed)
    logger.info(report.table())
    if "train" in report.occurrences:
        log_classes(report.occurrences, "--sampler and --class-weights of training even that out")
    for line in report.lines():
        logger.info(line)
    if embed is None and not any(isinstance(images, AnnotatedSplit) for images in splits.values()):
        logger.info("wrong labels were not looked for: give a --model whose embeddings say what is alike")
    page = write_report(report, folder)
    logger.info("%s, with thumbnails in %s", count_of(len(report.findings), "finding"), page)
    return page


class Embedder:
    """Features before the classifier of a timm model or of a run; see `Embed`."""

    def __init__(self, options: CheckOptions) -> None:
        self.backbone = Backbone.open(str(options.model), options.weights, options.device)
        self.batch_size = options.batch_size

    @torch.inference_mode()
    def __call__(self, split: str, images: Images, positions: NDArray[np.int64]) -> NDArray[np.float16]:
        batches = [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]
        transform = self.backbone.transform
        mode = transform.prepare.mode
        embeddings: NDArray[np.float16] = np.zeros((0, 0), np.float16)
        done = 0
        with ThreadPoolExecutor(4) as pool:
            for batch in progress(batches, f"embedding {split}"):
                inputs = torch.stack(list(pool.map(lambda i: transform(images.read(int(i), mode)), batch)))
                features = pooled_features(self.backbone.model, inputs.to(self.backbone.device))
                features /= features.norm(dim=1, keepdim=True).clamp(min=1e-12)  # halves have a small range
                if not done:
                    embeddings = np.zeros((len(positions), features.shape[1]), np.float16)
                embeddings[done : done + len(batch)] = features.float().cpu().numpy()
                done += len(batch)
        return embeddings
