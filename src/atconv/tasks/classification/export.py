"""A classifier as a file: images → logits, folded; in int8 too."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from atconv import deploy
from atconv.data.splits import Split
from atconv.deploy.formats import log_level
from atconv.engine.progress import progress
from atconv.models.attnet import AttNet
from atconv.tasks.classification.data import ReadableBatches
from atconv.tasks.common.exporter import Agreement, Exporter, Int8Accuracy, Written

__all__ = ["ClassificationExporter"]

logger = logging.getLogger(__name__)


class ClassificationExporter(Exporter):
    """Images, B C H W, as the predictor's transform gives them → logits."""

    formats = tuple(deploy.FORMATS)
    int8_formats = tuple(name for name, entry in deploy.FORMATS.items() if entry.quantize)
    output_names = ("logits",)
    fixed_batch = True

    @functools.cached_property
    def graph(self) -> nn.Module:
        return deploy.fold(self.model) if isinstance(self.model, AttNet) else self.model

    @property
    def forms(self) -> dict[str, deploy.Call]:
        folded: dict[str, deploy.Call] = {} if self.graph is self.model else {"eager, folded": self.graph}
        return {"eager": self.model, **folded}

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.predictor.transform.input_size

    def describe(self) -> dict[str, Any]:
        images = {"dtype": "float32", "axes": "batch channels height width"}
        return {
            "inputs": {"images": images | self.predictor.transform.describe()},
            "outputs": {"logits": {"axes": "batch classes", **self.predictor.describe_outputs()}},
        }

    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        _, split = self.predictor.choose_split(data, "auto", data_root)
        return [split.read(i, self.predictor.transform.prepare.mode) for i in range(min(count, len(split)))]

    def agreement(self, call: deploy.Call, images: list[Image.Image]) -> Agreement:
        if not images:
            return {}
        activation = self.predictor.activation
        inputs = [self.predictor.transform(image)[None] for image in images]
        pairs = [(activation(call(each)), activation(self.model(each))) for each in inputs]
        largest = max(float((a - b).abs().max()) for a, b in pairs)
        if not largest <= self.tolerance:
            raise ValueError(f"probabilities differ by {largest:.1e}")
        return {f"probability, {len(images)} images": largest}

    def prepare_int8(self, data: str | None, data_root: str | None, count: int) -> None:
        """Training images to calibrate on and test images to measure on, or two parts of one split."""
        name, measured = self.predictor.choose_split(data, "auto", data_root)
        pool = measured
        if name not in ("all", "train"):
            with log_level("atconv.data", logging.ERROR):  # nothing is measured on training images
                _, pool = self.predictor.choose_split(data, "train", data_root)
        order = np.random.default_rng(0).permutation(len(pool))
        self.calibration = Split(pool.source, [pool.indices[i] for i in order[:count]])
        if pool is measured:
            if len(pool) <= count:
                config: Any = self.predictor.config
                raise ValueError(
                    f"{data or config.data} has {len(pool)} images, all of which --calibration-images "
                    f"{count} would take: give fewer, or more data"
                )
            measured = Split(pool.source, [pool.indices[i] for i in order[count:]])
        self.measured = measured

    def write_int8(
        self, source: Written, entry: deploy.Format, batch_size: int
    ) -> tuple[Written, Int8Accuracy]:
        """The int8 file, and how it changes predictions."""
        path = source.path.with_name(f"model-int8{source.path.suffix}")
        logger.info("writing %s, calibrated on %d images", path.name, len(self.calibration))
        batches = self._batches("calibration", self.calibration, batch_size)
        shown = progress(batches, "calibrating")
        assert entry.quantize
        assert entry.open
        entry.quantize(source.path, path, (images for images, _ in shown))
        written = Written(path, source.accepts, entry.open(path), None)
        correct = []
        for file in (source, written):
            call: Any = file.call
            batches = self._batches("measured", self.measured, batch_size)
            with torch.inference_mode():
                pairs = [
                    (self.predictor.activation(call(images).float()), labels)
                    for images, labels in progress(batches, f"measuring {file.path.name}")
                ]
            correct.append(
                self.predictor.right(*(torch.cat(part).numpy() for part in zip(*pairs, strict=True)))
            )
        before, after = correct
        top1 = [100 * float(hits.mean()) for hits in correct]
        wrong, right = int((before & ~after).sum()), int((after & ~before).sum())
        logger.info(
            "int8: %s %.2f → %.2f %% on %d images: %d became wrong, %d became right",
            self.predictor.right_name, *top1, len(before), wrong, right,
        )  # fmt: skip
        return written, Int8Accuracy(len(before), top1[0], top1[1], wrong, right)

    def _batches(self, name: str, split: Split, batch_size: int) -> ReadableBatches:
        predictor = self.predictor
        limit, device = predictor.max_skipped, predictor.device
        return ReadableBatches(name, split, predictor.transform, batch_size, 0, limit, device)
