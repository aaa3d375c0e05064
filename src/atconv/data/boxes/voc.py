"""Boxes in Pascal VOC's format: an XML file for each image.

    DATA/JPEGImages/x.jpg           images; or in images/
    DATA/Annotations/x.xml          boxes
    DATA/ImageSets/Main/train.txt   the names in each split; may be missing

or folders of splits inside both, or both in DATA/SPLIT/; or x.xml next to x.jpg, as Roboflow exports it.

Pixels count from 1 and boxes include their last ones: 1, 1, 10, 10 are the first ten in both directions.
Objects that are `difficult` are crowds here: VOC's evaluation ignores them too. Parts are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from atconv.data.arrays import SharedItems
from atconv.data.boxes.reading import PIXEL_SLACK, TOO_LARGE, box_problem, clip_corners
from atconv.data.boxes.split import BadAnnotations, Box, BoxImage, BoxSplit, check_classes, report_bad
from atconv.data.boxes.voc_files import ImageIndex, find_places, xml_files
from atconv.data.images import opened_image, stored_geometry
from atconv.data.unreadable import in_threads
from atconv.io import read_bytes

__all__ = ["read_voc"]


@dataclass
class _Annotation:
    """What the XML file of an image holds."""

    name: str
    image: str = ""
    """empty where the file cannot be used"""
    size: tuple[int, int] = (0, 0)
    objects: list[tuple[str, Box]] = field(default_factory=list)
    """names and boxes, whose labels are not set"""
    problems: list[str] = field(default_factory=list)


def read_voc(
    data: Path,
    split: str,
    classes: Sequence[str] | None,
    images: Path | None,
    masks: bool,
    bad_annotations: BadAnnotations,
) -> BoxSplit:
    """A split without the annotations that are wrong. Arguments and errors are as in `read_coco`. An image
    without an XML file is missing; where the file has no objects, nothing is in the image."""
    if masks:
        raise ValueError(
            f"{data}: boxes in Pascal VOC's format have no masks: train --architecture faster_rcnn"
        )
    places = find_places(data, images)
    place = places[split]
    index, files = ImageIndex(place, data, images), list(xml_files(place).items())
    listed = [(name, path) for name, path in files if path.is_file()]
    read = list(in_threads(lambda i: _read(*listed[i], index), len(listed), "reading annotations"))
    _reject_twice(read)
    names = {name for each in read for name, _ in each.objects}
    if classes is None:  # what only another split has is a class too
        others = [
            item for other in places.values() if other is not place for item in xml_files(other).items()
        ]
        names |= {name for item in others if item[1].is_file() for name, _ in _read(*item, None).objects}
    where = place.annotations
    bad = [(each.image, problem) for each in read for problem in each.problems]
    report_bad(where, bad, bad_annotations)
    known = check_classes(where, sorted(names) or list(classes or ()), classes)
    numbers = {name: 1 + known.index(name) for name in known}
    items = [
        BoxImage(
            each.name,
            each.image,
            *each.size,
            tuple(replace(box, label=numbers[n]) for n, box in each.objects),
        )
        for each in read
        if each.image
    ]
    taken = {image for each in read for image in [each.image, *index.same(each.name)]}
    lacking = sorted(index.names - taken) if place.names is None else []
    lacking += [name for name, path in files if not path.is_file()]
    reason = f"has no XML file in {where}: add it, or remove the image"
    items += [BoxImage(name, name, 1, 1, missing=f"{name} {reason}") for name in lacking]
    return BoxSplit(where=where, folder=place.images, classes=known, items=SharedItems(items), bad=bad)


def _reject_twice(read: Sequence[_Annotation]) -> None:
    """Take the image from files that name one which an earlier file has."""
    owners: dict[str, _Annotation] = {}
    for each in read:
        first = owners.setdefault(each.image, each) if each.image else each
        if first is not each:
            each.problems.append(f"{each.name}.xml: {each.image} has {first.name}.xml too: remove one")
            each.image = ""


def _read(name: str, path: Path, index: ImageIndex | None) -> _Annotation:
    """What an XML file holds. Without an index only its objects are needed."""
    annotation, file = _Annotation(name), f"{name}.xml"
    try:
        root = _parse(read_bytes(path))
        size = root.find("size")
        if index is not None:
            annotation.image = index.find(name, _text(root, "filename"))
            annotation.size = _size(size, index.folder / annotation.image)
    except OSError as error:
        annotation.problems.append(f"{file} cannot be read: {error.strerror}")
        return annotation
    except (ValueError, expat.ExpatError) as error:
        annotation.image = ""
        annotation.problems.append(f"{file}: {error}")
        return annotation
    for number, item in enumerate(root.findall("object"), 1):
        try:
            annotation.objects.append((_class_name(item), _box(item, number, annotation.size)))
        except ValueError as error:
            annotation.problems.append(f"{file}, line {item.get('line')}: {error}")
    annotation.size = annotation.size if annotation.size[0] else (1, 1)  # of an image that will be left out
    return annotation


def _parse(content: bytes) -> Element:
    """The root of an XML file, whose elements know their lines.

    Raises:
        ValueError: it is no annotation, or declares a document type, which may hold entities that expand
            without end or name other files.
        ExpatError: it is no XML.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {"line": str(parser.CurrentLineNumber)})

    def reject(*declaration: object) -> None:
        raise ValueError("it declares a document type, which is not read: remove <!DOCTYPE …>")

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, reject
    parser.Parse(content, True)
    root = builder.close()
    if root.tag != "annotation":
        raise ValueError(f"it holds <{root.tag[:40]}> and not <annotation>")
    return root


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(size: Element | None, image: Path) -> tuple[int, int]:
    """Width and height that boxes are for; those of the image where the file has none, (0, 0) where that
    cannot be read either.

    Raises:
        ValueError: the file has none, and the image is turned by EXIF: boxes may be for either.
    """
    texts = [_text(size, tag) for tag in ("width", "height")] if size is not None else []
    if texts and all(text.isdecimal() and int(text[:9]) > 0 for text in texts):
        return int(texts[0][:9]), int(texts[1][:9])
    if any(text not in ("", "0", "0.0") for text in texts):
        raise ValueError(f"its size is {' × '.join(texts)[:40]}: give width and height in whole pixels")
    try:
        with opened_image(image) as opened:
            stored, orientation = stored_geometry(opened)
    except (OSError, ValueError):  # said when images are checked
        return 0, 0
    if orientation != 1:
        raise ValueError("it has no size, and its image is turned by EXIF: write the size that boxes are for")
    return stored


def _class_name(item: Element) -> str:
    name = _text(item, "name")
    if not name:
        raise ValueError("an object has no name: give it one or remove it")
    return name


def _box(item: Element, number: int, size: tuple[int, int]) -> Box:
    """The box of an object, in pixels from 0 on. Its size is not checked where it is not known."""
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("an object has no bndbox: give it one or remove it")
    texts = {side: _text(bounds, side) for side in ("xmin", "ymin", "xmax", "ymax")}
    try:
        left, top, right, bottom = values = [float(text) for text in texts.values()]
    except ValueError:
        values = []
    given = " ".join(f"{side} {text[:20]}" for side, text in texts.items())
    if not values or not all(abs(value) < TOO_LARGE for value in values):  # false for NaN too
        raise ValueError(f"its box is {given}: give four numbers, in pixels")
    # The last pixels belong to boxes; one that ends where it begins is a slip of the mouse and not a pixel.
    corners = (left - 1, top - 1, right, bottom) if left < right and top < bottom else (left, top, left, top)
    limits = size if size != (0, 0) else (int(TOO_LARGE), int(TOO_LARGE))
    problem = box_problem(corners, limits, PIXEL_SLACK, given)
    if problem:
        raise ValueError(problem)
    crowd = _text(item, "difficult") == "1"
    return Box(number, 0, clip_corners(corners, limits), None, crowd)
