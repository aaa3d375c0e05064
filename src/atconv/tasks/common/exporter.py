"""What a task says of a trained model, so that it becomes a file."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from atconv.deploy import FORMATS, Call, Format, relative_error
from atconv.engine.predictor import Predictor

__all__ = ["Agreement", "Exporter", "Int8Accuracy", "Written"]

Agreement = dict[str, float]
"""Differences from `predict` on images, by what is compared"""


@dataclass(frozen=True)
class Written:
    """A file that was written and compared with the model."""

    path: Path
    accepts: str
    call: Call | None
    """the file as a function; None where it does not run here"""
    error: float | None
    size: tuple[int, int] | None = None
    """height and width of images, where it takes no others"""


@dataclass(frozen=True)
class Int8Accuracy:
    """How int8 changes predictions. Percentages are 0…100."""

    images: int
    top1_before: float
    top1_after: float
    newly_wrong: int
    newly_right: int


class Exporter(ABC):
    """A trained model as a graph of named tensors, and how to compare a file of it with `predict`.

    Args:
        predictor: from `atconv.load`.
    """

    formats: tuple[str, ...] = ("onnx", "torch", "aoti", "openvino")
    """formats that the graph can be written in"""
    why_not: str = ""
    """why the others cannot be written"""
    int8_formats: ClassVar[tuple[str, ...]] = ()
    """formats that have int8"""
    any_batch: ClassVar[bool] = True
    """whether the graph takes several images at once"""
    fixed_batch: ClassVar[bool] = False
    """whether ONNX is written a second time, for one batch and size, which is faster for single images"""
    input_names: Sequence[str] = ("images",)
    output_names: Sequence[str]
    tolerance: float = 1e-4
    """largest `error` of a file"""
    step: int = 1
    """pixels: what divides height and width of inputs"""
    traced: tuple[int, int] = (128, 160)
    """height and width of the example: no map may be one position high or wide, which would be a constant"""

    def __init__(self, predictor: Predictor[Any, Any]) -> None:
        self.predictor: Any = predictor
        self.model: nn.Module = copy.deepcopy(predictor.model).cpu()

    @property
    def weights(self) -> Path:
        """The file of the run's weights."""
        return self.predictor.run.weights

    @property
    @abstractmethod
    def graph(self) -> nn.Module:
        """What is written, in eval mode."""

    @property
    def forms(self) -> dict[str, Call]:
        """What files are timed next to; "eager" is what they are compared with."""
        return {"eager": self.graph}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input that is usual for the model."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Inputs and outputs, for programs that open a file."""

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Random inputs of a size."""
        generator = torch.Generator().manual_seed(batch + height + width)
        return (torch.randn(batch, self.shape[0], height, width, generator=generator),)

    def error(self, call: Call, inputs: tuple[Tensor, ...]) -> float:
        """How far outputs of a file are from those of the model, relative."""
        return relative_error(call(*inputs), self.forms["eager"](*inputs))

    def write(self, format: str, path: Any, inputs: tuple[Tensor, ...], sizes: str, **options: Any) -> None:
        """Write the graph as a file."""
        entry = FORMATS[format]
        options |= {"input_names": self.input_names, "output_names": self.output_names}
        chosen = {name: options[name] for name in entry.options if name in options}
        entry.write(self.graph, path, inputs, sizes, **chosen)

    @abstractmethod
    def images(self, data: str | None, data_root: str | None, count: int) -> list[Image.Image]:
        """Images of the run's data to compare on, as `predictor.open_image` gives them; none for a generator.

        Raises:
            FileNotFoundError, ValueError: no such data.
        """

    def fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """An image for a file that takes one size (height, width) alone, where the transform does not see to
        that."""
        return image

    @abstractmethod
    def agreement(self, call: Call, images: list[Image.Image]) -> Agreement:
        """How a file's results differ from those of the predictor.

        Raises:
            ValueError: they differ more than rounding explains.
        """

    def prepare_int8(self, data: str | None, data_root: str | None, count: int) -> None:
        """Choose `count` images to calibrate on, and others to measure accuracy on.

        Raises:
            FileNotFoundError, ValueError: no such data, or too few.
        """
        raise NotImplementedError

    def write_int8(self, source: Written, entry: Format, batch_size: int) -> tuple[Written, Int8Accuracy]:
        """Write a file in int8, and measure how it changes predictions."""
        raise NotImplementedError
