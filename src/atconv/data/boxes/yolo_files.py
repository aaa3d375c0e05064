"""Where images, label files and names lie in YOLO's format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from atconv.data.boxes.reading import leads_outside, local_name, path_inside, read_lines, read_names
from atconv.data.folders import (
    IMAGE_FOLDERS,
    SPLITS,
    child_folder,
    image_folders,
    split_folders,
    split_of,
    splits_among,
    subfolders,
)
from atconv.data.images import image_suffixes
from atconv.data.listing import images_in, list_files, scan
from atconv.engine.reading import read_yaml

__all__ = [
    "MAX_CLASSES",
    "class_names",
    "find_config",
    "find_images",
    "find_sources",
    "is_yolo",
    "is_yolo_config",
    "label_files",
    "stray_labels",
    "yolo_splits",
]

MAX_CLASSES = 10_000

_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LABELS = ("labels",)
_NAMES = ("classes.txt", "obj.names")
_LOOKED_AT = 1000  # files of a folder, or bytes of a line, to recognize it

Sources = dict[str, list[Path]]
"""the folders and lists of images of each split"""


def is_yolo(path: Path) -> bool:
    """Whether a folder holds images with label files in YOLO's format."""
    if not path.is_dir():
        return False
    places = [path, *splits_among(subfolders(path))]
    try:
        named = [source for sources in _named_sources(path, None)[0].values() for source in sources]
        return any(_is_labeled(path, source) for source in [*named, *image_folders(*places), *places])
    except ValueError:  # of a data.yaml or a list, which is said when it is read
        return True


def yolo_splits(data: Path, images: Path | None) -> list[str]:
    """The splits that have images; none where this is not YOLO's format."""
    if images is None:
        return list(find_sources(data, None)[0]) if is_yolo(data) else []
    texts = (child_folder(data, _LABELS) or data).rglob("*.txt") if data.is_dir() else iter(())
    return list(find_sources(data, images)[0]) if any(map(_holds_boxes, islice(texts, 20))) else []


def is_yolo_config(path: Path) -> bool:
    """Whether a file is a data.yaml."""
    return path.is_file() and path.name.lower() in _CONFIGS


def _is_labeled(data: Path, source: Path) -> bool:
    """Whether there are label files for images: any where they have a folder of their own; next to images,
    those that begin with numbers, since captions lie there too."""
    if source.is_file():
        images = _listed(source, data, None)[:20]
        return any(file.is_file() for _, file in label_files(images, data, None))
    labels = _label_folder(source, data, None)
    if labels != source:
        return any(path.suffix.lower() == ".txt" for path in islice(labels.rglob("*"), _LOOKED_AT))
    names = sorted(entry.name for entry in islice(scan(source), _LOOKED_AT))
    stems = {Path(name).stem for name in names if _is_image(name)}
    texts = [source / name for name in names if name.endswith(".txt") and name[:-4] in stems]
    return any(map(_holds_boxes, texts))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in image_suffixes()


def _holds_boxes(path: Path) -> bool:
    """Whether a text file begins with a class number and other numbers, be they too few."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(_LOOKED_AT).split()
    try:
        numbers = list(map(float, first))
    except ValueError:
        return False
    return len(numbers) >= 4 and numbers[0].is_integer()


def find_config(data: Path) -> tuple[Path, dict[str, Any]] | None:
    """data.yaml and what it says, under any name.

    Raises:
        ValueError: it cannot be read.
    """
    files = sorted(entry.name for entry in scan(data) if entry.name.endswith((".yaml", ".yml")))
    for name in sorted(files, key=lambda name: name.lower() not in _CONFIGS):
        path, usual = data / name, name.lower() in _CONFIGS
        try:
            content = read_yaml(path) if usual or path.stat().st_size < 100_000 else None
        except ValueError:
            if usual:
                raise
            continue
        if isinstance(content, dict) and {"names", "nc"} & set(content):
            return path, content
        if usual:
            raise ValueError(
                f"{path} says no names: give names: [cat, dog], and train: and val: folders of images"
            )
    return None


def find_sources(data: Path, images: Path | None) -> tuple[Sources, list[str]]:
    """Where the images of each split lie, and what a person should know of that: by data.yaml; else by
    train.txt, val.txt; else by folders.

    Raises:
        ValueError: data.yaml cannot be read, or what it names is not in DATA.
    """
    sources, remarks = _named_sources(data, images)
    if not sources and images is not None:
        sources = {split: [path] for split, path in (split_folders(images) or {"train": images}).items()}
    if not sources:
        sources = _folders(data)
    if "train" in sources and sources.get("val") == sources["train"]:
        del sources["val"]
        remarks.append(f"{data}: val has the images of train: others are held out for it")
    return {split: sources[split] for split in SPLITS if split in sources}, remarks


def _named_sources(data: Path, images: Path | None) -> tuple[Sources, list[str]]:
    """Those that data.yaml names, else lists called train.txt, val.txt."""
    config = find_config(data)
    sources, remarks = _configured(*config, images) if config else ({}, [])
    lists = [data / e.name for e in scan(data) if e.name.endswith(".txt") and split_of(e.name[:-4])]
    return sources or {str(split_of(path.stem)): [path] for path in lists if _is_list(path)}, remarks


def _configured(config: Path, content: dict[str, Any], images: Path | None) -> tuple[Sources, list[str]]:
    """The folders and lists that data.yaml names."""
    data, sources, remarks = config.parent, {}, []
    roots, base = [root for root in (images, data) if root], str(content.get("path") or "")
    for key, value in content.items():
        split = split_of(str(key))
        entries = [value] if isinstance(value, str) else value
        if split is None or not entries:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
            raise ValueError(f"{config}: {key} must be a folder or list of images, or several, got {value!r}")
        paths = [path_inside(f"{base}/{entry}", roots) for entry in entries]
        missing = [entry for entry, path in zip(entries, paths, strict=True) if path is None]
        if missing and split == "test":
            remarks.append(f"{config}: {key}, {missing[0]}, is not in {data}: there is no test split")
        elif missing:
            raise ValueError(
                f"{config}: {key}, {missing[0]}, is not in {' or '.join(map(str, roots))}: put it there, or "
                "name the folder that holds the images with --images"
            )
        else:
            sources[split] = [path for path in paths if path is not None]
    return sources, remarks


def _is_list(path: Path) -> bool:
    """Whether a text file begins with the name of an image."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _is_image(file.readline(_LOOKED_AT).decode(errors="replace").strip())


def _folders(data: Path) -> Sources:
    """images/SPLIT, images/, SPLIT/images or SPLIT, else the folder itself."""
    for folder in image_folders(data):
        return {split: [path] for split, path in split_folders(folder).items()} or {"train": [folder]}
    splits = split_folders(data) if splits_among(subfolders(data)) else {}
    return {split: image_folders(path) or [path] for split, path in splits.items()} or {"train": [data]}


def find_images(sources: Sequence[Path], data: Path, images: Path | None) -> list[Path]:
    """The images of a split, each once.

    Raises:
        ValueError: a list cannot be read, or names an image that lies elsewhere.
    """
    found = (_listed(source, data, images) if source.is_file() else images_in(source) for source in sources)
    return list(dict.fromkeys(path for paths in found for path in paths))


def _listed(file: Path, data: Path, images: Path | None) -> list[Path]:
    """The images that a text file names, one on each line."""
    root, paths = images or data, []
    pools = image_folders(root)
    roots = [file.parent, root, data, *pools, *(inner for pool in pools for inner in subfolders(pool))]
    for number, line in enumerate(read_lines(file, names=True), 1):
        name = local_name(line.strip(), roots)
        path = path_inside(name, roots) if name else None
        if path is None and name and leads_outside(name, root, root):
            raise ValueError(
                f"{file}, line {number}: {name!r} is not in {root}: put it there, or name the folder that "
                "holds all images with --images"
            )
        paths += [path or root / name] if name else []
    return paths


def label_files(paths: Sequence[Path], data: Path, images: Path | None) -> list[tuple[Path, Path]]:
    """Each image and its label file, which may not be there."""
    folders = {folder: _label_folder(folder, data, images) for folder in {path.parent for path in paths}}
    return [(path, folders[path.parent] / f"{path.stem}.txt") for path in paths]


def stray_labels(
    pairs: Sequence[tuple[Path, Path]], split: str, sources: Sources, data: Path, images: Path | None
) -> list[Path]:
    """The label files of a split whose images are missing, besides those of its `pairs`. Lists of images
    leave out what they like; a folder of several splits is that of the first."""
    if any(source.is_file() for paths in sources.values() for source in paths):
        return []
    folders: dict[Path, str] = {}
    for name, paths in sources.items():
        for path in paths:
            folders.setdefault(_label_folder(path, data, images), name)
    own = [folder for folder, name in folders.items() if name == split]
    texts = {folder / name for folder in own for name in list_files(folder, frozenset({".txt"})).files}
    texts -= {label for _, label in pairs}
    for paths in sources.values() if texts else ():
        texts -= {label for _, label in label_files(find_images(paths, data, images), data, images)}
    return sorted(filter(_holds_boxes, texts))


def _label_folder(folder: Path, data: Path, images: Path | None) -> Path:
    """labels/… for images/…, where there is one; else the folder itself, or in DATA that of the same name."""
    elsewhere = images is not None and folder.is_relative_to(images)
    root = images if images is not None and elsewhere else data
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    for i in reversed(range(len(parts))):
        labels = (
            child_folder(root.joinpath(*parts[:i]), _LABELS) if parts[i].lower() in IMAGE_FOLDERS else None
        )
        if labels is not None:
            inner = labels.joinpath(*parts[i + 1 :])
            return inner if inner.is_dir() else labels
    if not elsewhere:
        return folder
    labels = (child_folder(data, _LABELS) or data).joinpath(*parts)
    return labels if labels.is_dir() else folder


def class_names(data: Path, config: tuple[Path, dict[str, Any]] | None) -> tuple[Path, list[str] | None]:
    """The file that names the classes, and the names; None where there is none.

    Raises:
        ValueError: they are no names, or not as many as data.yaml says.
    """
    if config is None:
        folders = [data, *(path for path in subfolders(data))]
        files = [folder / name for name in _NAMES for folder in folders]
        file = next((path for path in files if path.is_file()), None)
        if file is None:
            return data, None
        return file, read_names(file)
    path, content = config
    named, count = content.get("names"), content.get("nc")
    if isinstance(named, dict):
        numbers = sorted(named, key=str) if not all(isinstance(key, int) for key in named) else sorted(named)
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"{path}: names must be numbered 0 … {len(numbers) - 1}, got {str(numbers)[:80]}"
            )
        named = [named[number] for number in numbers]
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_CLASSES):
        raise ValueError(
            f"{path}: nc must be the number of classes, 1 … {MAX_CLASSES}, got {str(count)[:40]}"
        )
    if named is None:
        return path, [str(number) for number in range(count or 0)]
    if not isinstance(named, list) or not all(type(name) in (str, int) for name in named):
        raise ValueError(
            f"{path}: names must be a list of names, or number: name, got {str(named)[:80]}; write what "
            "YAML takes for something else, such as yes, no and 1.0, in quotes"
        )
    if count is not None and count != len(named):
        raise ValueError(f"{path}: nc is {count}, and names are {len(named)}: correct one of them")
    return path, [str(name) for name in named]
