"""Arrays that numpy has saved: `.npy` memory-mapped, or two members of an `.npz` read into memory."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from kdcache.errors import SourceError
from kdcache.sources.packed import DEFLATE_RATIO, MEMORY_LIMIT
from kdcache.sources.source import ArraySource, checked_labels, count_classes, describe

__all__ = ["map_npy", "open_npy", "open_npz"]


def open_npy(inputs: Path, labels: Path | None, *, name: str, classes: int | None = None) -> ArraySource:
    """Inputs [N, *shape] of any dtype that a store keeps, memory-mapped, with labels [N] of any integer dtype."""
    targets = None if labels is None else map_npy(labels)
    return _source(name, map_npy(inputs), str(inputs), targets, str(labels), classes)


def open_npz(path: Path, input_key: str, label_key: str, *, name: str, classes: int | None = None) -> ArraySource:
    """Two members of an .npz; without the member `label_key` the source is unlabelled."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if input_key not in members:
                raise SourceError(
                    f"{path}: has no member {input_key!r}, it has {sorted(members)}; "
                    "name the inputs by input_key and the labels by label_key"
                )
            inputs = _member(archive, members[input_key], f"{path}: {input_key}")
            labels = None
            if label_key in members:
                labels = _member(archive, members[label_key], f"{path}: {label_key}")
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # zipfile and zlib raise a dozen types on hostile bytes, not all of them documented
        raise SourceError(f"{path}: not an .npz file, or damaged ({error})") from error
    return _source(name, inputs, f"{path}: {input_key}", labels, f"{path}: {label_key}", classes)


def _source(
    name: str,
    inputs: npt.NDArray[Any],
    place: str,
    labels: npt.NDArray[Any] | None,
    labels_place: str,
    classes: int | None,
) -> ArraySource:
    if not inputs.ndim or not inputs.size:
        raise SourceError(f"{place}: shape {list(inputs.shape)} holds no samples; expected [N, …]")
    describe(inputs, place)
    targets = None if labels is None else checked_labels(labels, classes, labels_place)
    if targets is not None and len(targets) != len(inputs):
        raise SourceError(
            f"{place} holds {len(inputs)} samples and {labels_place} holds {len(targets)} labels; they must be as many"
        )
    return ArraySource(name, inputs, targets, classes=classes or count_classes(targets))


def map_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an .npy, memory-mapped, once its header is known to be sound. SourceError."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                _header(file, path.stat().st_size, str(path))
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # the header is parsed as Python text, which can fail in many ways
        raise SourceError(f"{path}: not an .npy file, or damaged ({error})") from error
    raise SourceError(f"{path}: no such file; check the path in the recipe")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: str) -> npt.NDArray[Any]:
    size = min(entry.file_size, entry.compress_size * DEFLATE_RATIO)
    if size > MEMORY_LIMIT:
        raise SourceError(
            f"{place}: {size} bytes are more than the {MEMORY_LIMIT} that are read into memory; "
            "save it as .npy, which is memory-mapped"
        )
    with archive.open(entry) as file:
        _header(file, size, place)
    with archive.open(entry) as file:
        array: npt.NDArray[Any] = npy.read_array(file, allow_pickle=False)
        file.read(1)  # at the end of the member its checksum is compared
    return array


def _header(file: IO[bytes], size: int, place: str) -> None:
    """Refuses an .npy header that needs pickle, or that declares more or less than the `size` bytes of the file."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise SourceError(f"{place}: .npy version {version} is for records with named fields; save a plain array")
    if dtype.hasobject:
        raise SourceError(f"{place}: holds Python objects, which only pickle could read; save an array of numbers")
    found, declared = size - file.tell(), math.prod(shape) * dtype.itemsize
    if found != declared or any(length < 0 for length in shape):
        raise SourceError(
            f"{place}: its header says {list(shape)} of {dtype} = {declared} bytes, but {found} follow; "
            "it is cut short or damaged"
        )
