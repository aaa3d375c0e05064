"""`atconv embed`: images as vectors, by the features of a trained backbone."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from atconv.analysis.features import pooled_features
from atconv.data.arrays import SharedNames
from atconv.data.listing import find_images
from atconv.data.nearest import nearest_blocks
from atconv.data.sources.base import ImageSource
from atconv.data.splits import Split
from atconv.data.transforms import EvalTransform
from atconv.data.unreadable import SkippedFile
from atconv.engine.devices import resolve_device
from atconv.engine.options import PositiveInt, Workers
from atconv.engine.progress import progress
from atconv.extras import name_missing_extra
from atconv.io import count_of, escape_controls, escape_row, read_rows, write_atomically, write_rows
from atconv.tasks import load
from atconv.tasks.classification.classifier import ClassifierPredictor
from atconv.tasks.classification.data import ReadableBatches
from atconv.tasks.classification.model import open_named_model

__all__ = ["Backbone", "Embedded", "FileSource", "embed", "is_embeddings", "nearest", "read_embeddings"]

logger = logging.getLogger(__name__)


class FileSource(ImageSource):
    """Image files, whatever they show."""

    checkable = True

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__("the images", ["image"], np.zeros(len(files), np.int64))
        self._names = SharedNames(map(str, files))

    def file(self, index: int) -> Path:
        return Path(self._names[index])

    def name(self, index: int) -> str:
        return self._names[index]


class Embedded(NamedTuple):
    """Features of images."""

    features: NDArray[np.float32]
    """images × channels"""
    split: Split
    """the images, in the order of the features"""
    skipped: list[SkippedFile]
    """those that could not be read"""


@dataclass(frozen=True)
class Backbone:
    """A trained classifier without its last layer."""

    name: str
    model: Any
    transform: EvalTransform
    device: torch.device
    predictor: ClassifierPredictor[Any] | None = None
    """of a run"""

    @classmethod
    def open(cls, model: str, weights: str | None = None, device: str = "auto") -> Backbone:
        """The backbone of a classification run's folder, or a model by timm's name.

        Raises:
            ValueError: no such run, model or weights.
        """
        where = resolve_device(device)
        if not Path(model).exists():
            if "/" in model:
                raise FileNotFoundError(f"no such run folder: {model}")
            network = open_named_model(model, weights).eval().to(where)
            return cls(model, network, EvalTransform(network.pretrained_cfg), where)
        if weights is not None:
            raise ValueError(f"{model} is a run, which has weights: leave {weights} out, or give timm's name")
        predictor = load(model)
        if not isinstance(predictor, ClassifierPredictor):
            raise ValueError(f"{model} is a {predictor.task} run: give a classification run")
        predictor.to(where)
        return cls(Path(model).resolve().name, predictor.model, predictor.transform, where, predictor)

    @property
    def digest(self) -> str:
        """Of the weights: features of different models cannot be compared."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def embed(self, split: Split, name: str, batch_size: int = 64, workers: int = 2) -> Embedded:
        """Features of the images of a split that can be read, in their order.

        Raises:
            ValueError: none of them can be read.
        """
        batches = ReadableBatches(name, split, self.transform, batch_size, workers, None, self.device)
        features = [
            pooled_features(self.model, images.to(self.device, non_blocking=True)).float().cpu()
            for images, _ in progress(batches, f"embedding {name}")
        ]
        if not features:
            reason = batches.skipped[0].reason
            raise ValueError(f"none of {count_of(len(split), 'image')} could be read: {reason}")
        return Embedded(torch.cat(features).numpy(), batches.split, batches.skipped)

    def embed_files(self, patterns: Sequence[str], batch_size: int = 64, workers: int = 2) -> Embedded:
        """Features of image files, folders or globs. Those that cannot be read are named and left out.

        Raises:
            FileNotFoundError, ValueError: there are none, or none that can be read.
        """
        files = find_images(patterns)
        split = Split(FileSource(files), range(len(files)))
        embedded = self.embed(split, "images", batch_size, workers)
        for file in embedded.skipped:
            logger.error("left out %s", escape_controls(file.reason))
        return embedded


def embed(
    model: str,
    images: Sequence[str],
    out: str,
    weights: str | None = None,
    batch_size: PositiveInt = 64,
    workers: Workers = 2,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Write the features that a backbone's classifier is given, a row for each image that can be read.

    Args:
        model: folder of a classification run, or a model by timm's name.
        images: image files, folders or globs.
        out: .npy, images × channels, with the names in a .csv file next to it; or .parquet with both. Each
            row says which weights it is of.
        weights: weights file of a named model; default: timm's pretrained weights.
        batch_size: images in one forward pass.
        workers: data-loading processes.
        device: where to run.

    Returns:
        the file.

    Raises:
        FileNotFoundError, ValueError: no such model or images, or the file exists or is of another kind.
    """
    file = Path(out)
    _check_out(file)
    backbone = Backbone.open(model, weights, device)
    features, split, _ = backbone.embed_files(images, batch_size, workers)
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [split.name(i) for i in range(len(split))]
    if file.suffix == ".npy":
        digest = backbone.digest
        rows = [{"row": i, "image": name, "model": digest} for i, name in enumerate(names)]
        write_rows(file.with_suffix(".csv"), rows)
        write_atomically(file, lambda path: np.save(path, features))
    else:
        _write_parquet(file, features, names, backbone.digest)
    logger.info("%s × %d channels in %s", count_of(len(names), "image"), features.shape[1], file)
    return file


def _check_out(out: Path) -> None:
    """Fail fast: raise ValueError for a file that cannot or must not be written."""
    if out.suffix not in (".npy", ".parquet"):
        raise ValueError(f"out must be a .npy or .parquet file, got {out}")
    for file in [out, *([out.with_suffix(".csv")] if out.suffix == ".npy" else [])]:
        if file.exists():
            raise ValueError(f"{file} exists already: name another with --out, or remove it")
    if out.suffix == ".parquet":
        with name_missing_extra():
            import pyarrow  # noqa: F401


def _write_parquet(out: Path, features: NDArray[np.float32], names: Sequence[str], model: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = [name.encode("utf-8", "backslashreplace").decode() for name in escape_row(names)]
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    models = pa.array([model] * len(names), pa.string())
    table = pa.table({"image": pa.array(texts, pa.string()), "model": models, "embedding": values})
    write_atomically(out, lambda path: parquet.write_table(table, path))


def is_embeddings(path: Path) -> bool:
    """Whether a file is one of `embed`, and not a table of labels."""
    if path.suffix != ".parquet" or not path.is_file():
        return path.suffix == ".npy"
    from atconv.data.tables.files import read_table

    return "embedding" in read_table(path).columns


def read_embeddings(path: Path, model: str) -> tuple[NDArray[np.float32], list[str]]:
    """Features, images × channels, and names of a file that `embed` wrote. Nothing is unpickled.

    Args:
        model: digest of the weights that they must be of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, its names are not one for each row, or it is of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        features, names, models = _read_npy(path) if path.suffix == ".npy" else _read_parquet(path)
        if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
            raise ValueError(f"rows of numbers are needed, got {features.dtype} {features.shape}")
        if not len(names) == len(features) > 0:
            raise ValueError(f"{len(names)} names for {len(features)} rows")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a file of atconv embed: {str(error)[:200]}") from error
    if others := set(models) - {model}:
        raise ValueError(
            f"{path} is of another model: the digest of its weights is {min(others)}, that of these {model}; "
            "embed its images again with this model"
        )
    return features.astype(np.float32), names


def _read_npy(path: Path) -> tuple[NDArray[Any], list[str], list[str]]:
    # Mapped, a file that claims to hold more than it does is rejected.
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    rows = read_rows(path.with_suffix(".csv"), {"image": str, "model": str})
    return features, [row["image"] for row in rows], [row["model"] for row in rows]


@name_missing_extra()
def _read_parquet(path: Path) -> tuple[NDArray[Any], list[str], list[str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["image", "model", "embedding"])
        column = table["embedding"].combine_chunks()
        names, models = ([str(text) for text in table[name].to_pylist()] for name in ("image", "model"))
        return column.flatten().to_numpy().reshape(len(names), -1), names, models
    except (pa.ArrowException, KeyError, AttributeError) as error:
        raise ValueError(str(error)) from error


def nearest(
    queries: NDArray[np.float32], features: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The nearest rows of `features` to each query by cosine similarity, the most similar first.

    Returns:
        similarities −1 … 1 and row numbers, both queries × min(count, rows).
    """
    units = [F.normalize(torch.from_numpy(each), dim=1).numpy() for each in (queries, features)]
    shape = len(queries), min(count, len(features))
    similarities, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
    for start, similar, places in nearest_blocks(units[0], units[1], shape[1]):
        block = slice(start, start + len(similar))
        similarities[block], rows[block] = similar, places
    return similarities, rows
