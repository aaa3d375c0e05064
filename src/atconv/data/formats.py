"""The formats that DATA may have: what is read, in which file, and what is only recognized.

A new format is one file and one entry in `FORMATS`; see "Add a data format" in CONTRIBUTING.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atconv.data import other_formats as other
from atconv.data.annotated import AnnotatedSplit, check_split, log_tool_folders
from atconv.data.boxes.coco import coco_splits, is_coco, is_coco_file, read_coco
from atconv.data.boxes.split import BadAnnotations, BoxSplit
from atconv.data.boxes.voc import read_voc
from atconv.data.boxes.voc_files import is_voc, is_voc_file, voc_splits
from atconv.data.boxes.yolo import read_yolo
from atconv.data.boxes.yolo_files import is_yolo, is_yolo_config, yolo_splits
from atconv.data.config import DataConfig, MaskOptions, reject_options
from atconv.data.folders import choose_split, subfolders
from atconv.data.listing import is_run
from atconv.data.masks.layouts import has_masks
from atconv.data.masks.split import MaskSplit, mask_splits, read_mask_folder
from atconv.data.orientation import Exif
from atconv.data.sources.base import ImageSource
from atconv.data.sources.digits import DigitsSource
from atconv.data.sources.folders import open_folder
from atconv.data.sources.lmdb import lmdb_files, open_lmdb
from atconv.data.sources.shards import open_shards, shard_splits
from atconv.data.sources.timm_datasets import is_timm_name, open_timm
from atconv.data.tables.source import TABLE_OPTIONS, label_tables, open_tables
from atconv.data.unreadable import CheckImages
from atconv.extras import name_missing_extra

__all__ = [
    "FORMATS",
    "AnnotatedFormat",
    "Annotation",
    "Format",
    "LabelFormat",
    "UnfitData",
    "annotated_splits",
    "open_annotated",
    "open_boxes",
    "open_masks",
    "open_sources",
    "read_annotated",
    "recognize",
]
logger = logging.getLogger(__name__)

Annotation = Literal["labels", "boxes", "masks"]


_TIMM_OPTIONS = ("data_root", "train_split", "val_split", "test_split")


@dataclass(frozen=True, kw_only=True)
class Format:
    """What DATA may be."""

    name: str
    """what messages call it, after "is recognized as" """
    recognizes: Callable[[Path], bool]
    """whether a file or folder is it"""
    annotation: Annotation | None = None
    """what its images are annotated with, where it is data"""
    advice: str = ""
    """what to do with it, where it is not read"""


@dataclass(frozen=True, kw_only=True)
class LabelFormat(Format):
    """Images with a class each."""

    annotation: Annotation | None = "labels"
    open: Callable[[DataConfig], Mapping[str, ImageSource]]
    """its splits by name; a lone "train" is all there is, to be split"""
    unused: tuple[str, ...] = (*_TIMM_OPTIONS, *TABLE_OPTIONS)
    """options of `DataConfig` that have no effect on it"""


@dataclass(frozen=True, kw_only=True)
class AnnotatedFormat(Format):
    """Images with boxes or masks."""

    expected: str
    """what to give, for messages"""
    splits: Callable[..., Sequence[str]]
    """(folder, its folder of images if that was given, **options that say where files lie) → names of splits,
    none where it is not this; where they do not agree, `recognizes` decides"""
    places: tuple[str, ...] = ()
    """the options of the task that `splits` takes"""
    read: Callable[..., AnnotatedSplit]
    """(folder, split, classes, images, **options of the task) → a split of the annotations as the files have
    them: images are checked, and annotations turned, for all formats alike"""


class UnfitData(ValueError):
    """DATA is recognized as something else than is needed."""

    def __init__(self, path: Path, found: Format, needed: Annotation, expected: str = "") -> None:
        advice = found.advice or (f"for {needed}, give {expected}" if expected else "")
        super().__init__(f"{path} is recognized as {found.name}" + (f": {advice}" if advice else ""))
        self.found, self.needed = found, needed


_FOLDER = LabelFormat(name="images without boxes or masks", recognizes=other.has_image, open=open_folder)
_CONVERT = "convert it to COCO's, YOLO's or Pascal VOC's format"

FORMATS: tuple[Format, ...] = (
    LabelFormat(
        name="scikit-learn's digits",
        recognizes=lambda path: str(path) == "digits" and not path.exists(),
        open=lambda config: {"train": DigitsSource()},
    ),
    LabelFormat(
        name="a dataset of timm's",
        recognizes=is_timm_name,
        open=open_timm,
        unused=TABLE_OPTIONS,
    ),
    Format(name="the folder of a run", recognizes=is_run, advice="give a folder of images"),
    *(
        Format(name=f"detection data in {name}", recognizes=recognizes, annotation="boxes", advice=_CONVERT)
        for name, recognizes in other.UNREAD_BOXES.items()
    ),
    AnnotatedFormat(
        name="detection data in YOLO's format (images and labels)",
        recognizes=is_yolo,
        annotation="boxes",
        expected="images and labels in YOLO's format",
        splits=yolo_splits,
        read=read_yolo,
    ),
    AnnotatedFormat(
        name="detection data in Pascal VOC's format (images and XML files)",
        recognizes=is_voc,
        annotation="boxes",
        expected="images and XML files of Pascal VOC",
        splits=voc_splits,
        read=read_voc,
    ),
    AnnotatedFormat(
        name="detection data in COCO's format",
        recognizes=is_coco,
        annotation="boxes",
        expected="a folder with images/ and train.json, val.json, or annotations.json (COCO's format)",
        splits=coco_splits,
        read=read_coco,
    ),
    Format(
        name="annotations in COCO's format",
        recognizes=is_coco_file,
        annotation="boxes",
        advice="give the folder that holds them",
    ),
    Format(
        name="annotations in Pascal VOC's format",
        recognizes=is_voc_file,
        annotation="boxes",
        advice="give the folder that holds them and the images",
    ),
    Format(
        name="the configuration of data in YOLO's format",
        recognizes=is_yolo_config,
        annotation="boxes",
        advice="give the folder that holds it and the images",
    ),
    AnnotatedFormat(
        name="images with masks",
        recognizes=has_masks,
        annotation="masks",
        expected="a folder with images/, masks/ and classes.txt, or with images and masks of the same names "
        "in other folders",
        splits=mask_splits,
        places=("options",),
        read=read_mask_folder,
    ),
    LabelFormat(
        name="labeled images in LMDB files", recognizes=lambda path: bool(lmdb_files(path)), open=open_lmdb
    ),
    LabelFormat(
        name="WebDataset shards",
        recognizes=lambda path: bool(shard_splits(path)),
        open=open_shards,
        unused=(*_TIMM_OPTIONS, *(set(TABLE_OPTIONS) - {"label_column", "label_separator"})),
    ),
    Format(
        name="a table",
        recognizes=other.file_of(".xls", ".xlsx", ".json", ".jsonl"),
        advice="save labels as CSV or Parquet, or convert boxes to COCO's format, and give the folder",
    ),
    Format(
        name="a file of weights",
        recognizes=other.file_of(".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx"),
        advice="give a folder of images",
    ),
    Format(
        name="a file of arrays",
        recognizes=other.file_of(".npy", ".npz", ".mat", ".h5", ".hdf5"),
        advice="save its images as PNG files",
    ),
    Format(name="an archive", recognizes=other.is_archive, advice="unpack it, and give the folder"),
    Format(
        name="one image",
        recognizes=other.is_image,
        advice="give a folder of images, with a folder for each class or with annotations",
    ),
    LabelFormat(
        name="a table of labels",
        recognizes=lambda path: bool(label_tables(path)),
        open=open_tables,
        unused=_TIMM_OPTIONS,
    ),
    _FOLDER,
    Format(name="a folder of archives", recognizes=other.holds_archives, advice="unpack them"),
)


def recognize(path: Path) -> Format | None:
    """What a file or folder is, if it is anything known."""
    return next((known for known in FORMATS if known.recognizes(path)), None)


def open_sources(config: DataConfig) -> dict[str, ImageSource]:
    """Open the splits that DATA comes with; a lone "train" is all there is, to be split.

    Raises:
        ValueError: DATA is none of the kinds this reads, or is empty; the message says what fits.
    """
    path = Path(config.data)
    found = recognize(path) or (_FOLDER if path.is_dir() else None)
    if isinstance(found, LabelFormat):
        reject_options(config, found.unused, f"DATA {config.data} is recognized as {found.name}")
        return dict(found.open(config))
    if found is not None:
        raise UnfitData(path, found, "labels")
    state = "is in no format that is read here" if path.exists() else "does not exist"
    raise ValueError(
        f"DATA {config.data!r} {state}: give an image folder, a table of labels, an LMDB file, a folder of "
        "WebDataset shards, a timm dataset name (torch/…, hfds/…) or digits"
    )


@name_missing_extra()
def open_boxes(
    data: str | Path,
    masks: bool,
    check_images: CheckImages = "decode",
    bad_annotations: BadAnnotations = "reject",
    **options: Any,
) -> dict[str, BoxSplit]:
    """Splits with boxes, checked, and masks where every box needs one. Annotations that are wrong raise
    ValueError, or are logged and left out. `options` are those of `open_annotated`."""
    return open_annotated(
        "boxes", data, check_images, masks=masks, bad_annotations=bad_annotations, **options
    )


def open_masks(
    data: str | Path,
    check_images: CheckImages = "decode",
    options: MaskOptions | None = None,
    **rest: Any,
) -> dict[str, MaskSplit]:
    """Splits with a mask for each image, checked. `options` say where masks lie and what they hold; the rest
    are those of `open_annotated`."""
    return open_annotated("masks", data, check_images, options=options or MaskOptions(), **rest)


def open_annotated(
    annotation: Annotation,
    data: str | Path,
    check_images: CheckImages,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    exif: Exif | None = None,
    images: str | Path | None = None,
    skip_unreadable: bool = False,
    **own: Any,
) -> dict[str, Any]:
    """The splits of a folder by name; a lone "train" is all there is.

    Args:
        annotation: boxes or masks.
        data: the folder.
        check_images: how image files are checked: decode each, read its header, or not at all.
        classes: names that the classes must have; default: those of the first split.
        split: open this split alone, as `choose_split` names it; default: all.
        exif: what annotations of images with an EXIF orientation belong to; default: as sizes tell.
        images: the folder of images, where it is not in DATA.
        skip_unreadable: leave out images that cannot be read; the split's `skipped` lists them.
        own: options of the annotation's formats.

    Raises:
        ValueError: no such folder or files, or annotations that are wrong: each is named.
    """
    return {
        name: check_split(opened, check_images, exif, skip_unreadable, name == "train" and split is None)
        for name, opened in read_annotated(annotation, data, classes, split, images, **own)
    }


def read_annotated(
    annotation: Annotation,
    data: str | Path,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    images: str | Path | None = None,
    **own: Any,
) -> Iterator[tuple[str, Any]]:
    """The splits of `open_annotated` one after the other, with annotations as the files have them: images are
    not opened."""
    data, images = Path(data), None if images is None else Path(images)
    if images is not None and not images.is_dir():
        raise ValueError(f"the folder of images {images} does not exist")
    known, names = _annotated_format(annotation, data, images, own)
    logger.info("%s is recognized as %s", data, known.name)
    looked_at: set[Path] = set()
    for name in names if split is None else [choose_split(names, split, data)]:
        opened = known.read(data, name, classes, images, **own)
        log_tool_folders(data, opened, looked_at)
        classes = classes or opened.classes
        yield name, opened


def annotated_splits(
    annotation: Annotation, data: str | Path, images: str | Path | None = None, **own: Any
) -> Sequence[str]:
    """The names of the splits of DATA."""
    return _annotated_format(annotation, Path(data), None if images is None else Path(images), own)[1]


def _annotated_format(
    annotation: Annotation, data: Path, images: Path | None, own: Mapping[str, Any]
) -> tuple[AnnotatedFormat, Sequence[str]]:
    """The format of DATA, and the names of its splits."""
    formats = [f for f in FORMATS if isinstance(f, AnnotatedFormat) and f.annotation == annotation]
    for known in FORMATS:
        if isinstance(known, AnnotatedFormat) and known.annotation == annotation:
            names = known.splits(data, images, **{name: own[name] for name in known.places})
            others = (each for each in formats if each is not known)
            if names and (not any(each.recognizes(data) for each in others) or known.recognizes(data)):
                return known, names
        elif type(known) is Format and known.annotation in (None, annotation) and known.recognizes(data):
            break
    expected = ", or ".join(known.expected for known in reversed(formats))
    found = recognize(data)
    inner = [f for f in subfolders(data) if any(known.recognizes(f) for known in formats)]
    if inner and found in (None, _FOLDER):
        raise ValueError(f"{data} has no {annotation}, and {inner[0]} has: give that folder")
    if found is not None:
        raise UnfitData(data, found, annotation, expected)
    state = f"has no {annotation} in a format that is read here" if data.exists() else "does not exist"
    raise ValueError(f"{data} {state}: give {expected}")
