"""Pascal VOC annotations: one XML file an image, with the boxes of its objects."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kdcache.errors import SourceError

__all__ = ["Annotation", "read_annotation"]

_MOST_BYTES = 1 << 20
_FORBIDDEN = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: class names, and boxes (x1, y1, x2, y2) in pixels from the upper left corner, 0 there.

    `size` is (height, width) as the file says it, None where it does not.
    """

    names: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int] | None


def read_annotation(path: Path) -> Annotation:
    """The objects of an annotation in the order of the file; those marked difficult or truncated are objects too.

    VOC numbers pixels from 1 and its xmax and ymax lie inside the box, so x1 = xmin - 1 and x2 = xmax. The boxes are
    as the file has them, inside the image or not. A document type, which is how XML names entities and files, is
    refused. Raises SourceError.
    """
    root = _parsed(path)
    names, boxes = [], []
    for number, found in enumerate(root.findall("object"), 1):
        place = f"{path}: object {number}"
        name = (found.findtext("name") or "").strip()
        if not name:
            raise SourceError(f"{place}: has no <name>")
        x1, y1, x2, y2 = (_number(found.findtext(f"bndbox/{key}"), f"{place}: <{key}>") for key in _CORNERS)
        if x2 < x1 or y2 < y1:
            raise SourceError(f"{place}: its box ends before it begins ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
        names.append(name)
        boxes.append((x1 - 1, y1 - 1, x2, y2))
    size = None
    if root.find("size") is not None:
        height, width = (_number(root.findtext(f"size/{key}"), f"{path}: <{key}>") for key in ("height", "width"))
        size = (int(height), int(width)) if height and width else None  # some tools leave 0 there
    return Annotation(tuple(names), tuple(boxes), size)


def _parsed(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror or error}); every image has an annotation"
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: byte {error.start} is not UTF-8; convert the annotation") from error
    if len(content) > _MOST_BYTES:
        raise SourceError(f"{path}: more than {_MOST_BYTES} bytes; an annotation of one image has a few thousand")
    if _FORBIDDEN.search(text):
        raise SourceError(f"{path}: declares a document type or an entity, which no annotation needs; remove it")
    try:
        # Text, not bytes: so what was searched above is what is parsed, whatever encoding the file claims.
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not an XML file, or damaged ({error})") from error
    if root.tag != "annotation":
        raise SourceError(f"{path}: holds <{root.tag[:40]}>; a Pascal VOC annotation holds <annotation>")
    return root


def _number(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) < 1 << 24:
        raise SourceError(f"{place}: is {str(text)[:40]!r}; expected a number of pixels")
    return value
