"""IDX files, the format of MNIST and its kin: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.errors import SourceError
from kdcache.sources.packed import fill, open_packed
from kdcache.sources.source import ArraySource, checked_labels, count_classes

__all__ = ["open_idx", "read_idx"]

_IMAGES, _LABELS = 2051, 2049
_KINDS = {_IMAGES: "images", _LABELS: "labels"}


def open_idx(
    images: Path, labels: Path | None, *, name: str, classes: int | None = None, class_names: tuple[str, ...] = ()
) -> ArraySource:
    """Images uint8 [H, W] with their labels, read into memory."""
    targets = None
    if labels is not None:
        count, found = _rows(images, _IMAGES), _rows(labels, _LABELS)
        if count != found:
            raise SourceError(
                f"{images} holds {count} images and {labels} holds {found} labels; "
                "they must be as many: is one of them of another split?"
            )
        targets = checked_labels(read_idx(labels, _LABELS), classes, str(labels))
    inputs = read_idx(images, _IMAGES)
    return ArraySource(name, inputs, targets, classes=classes or count_classes(targets), class_names=class_names)


def read_idx(path: Path, magic: int) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of this magic: 2051 images [N, H, W], 2049 labels [N]."""
    with open_packed(path) as (file, most, packed):
        shape, header = _header(file, path, magic)
        size = 1
        for length in shape:
            size *= length
        said = f"{path}: its header says {' × '.join(map(str, shape))} = {size} bytes"
        if not size:
            raise SourceError(f"{said}: it holds nothing")
        if size > most - (0 if packed else header):
            room = f"{most} can be unpacked from it at most" if packed else f"{most - header} follow"
            raise SourceError(f"{said}, but {room}: it is cut short or its header is wrong")
        values = fill(file, size, str(path))
        if len(values) < size:
            raise SourceError(f"{said}, but {len(values)} follow: it is cut short; fetch it again")
        if file.read(1):
            raise SourceError(f"{said}, but more follow: it is damaged or of another format")
    return values.reshape(shape)


def _rows(path: Path, magic: int) -> int:
    with open_packed(path) as (file, _, _):
        return _header(file, path, magic)[0][0]


def _header(file: io.BufferedIOBase, path: Path, magic: int) -> tuple[tuple[int, ...], int]:
    """The shape that the header declares and the header's length in bytes."""
    dims = magic & 0xFF
    length = 4 + 4 * dims
    header = file.read(length)
    wanted = f"{path}: expected an IDX {_KINDS[magic]} file, magic {magic}"
    if len(header) >= 4:
        found = int.from_bytes(header[:4], "big")
        if found != magic:
            other = f", which is {'an' if found == _IMAGES else 'a'} {_KINDS[found]} file" if found in _KINDS else ""
            raise SourceError(f"{wanted}, found magic {found}{other}")
    if len(header) < length:
        raise SourceError(f"{wanted}, with a header of {length} bytes; the file holds {len(header)}")
    return struct.unpack(f">{dims}I", header[4:]), length
