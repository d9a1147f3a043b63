"""Files that may be gzipped, read no further than they are allowed to go."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import SourceError

__all__ = ["DEFLATE_RATIO", "MEMORY_LIMIT", "fill", "open_packed"]

# Deflate cannot pack more than 1032 bytes into one, so a header that promises more is false.
DEFLATE_RATIO = 1032
# What a source that is read whole may take; larger ones belong into a memory-mapped .npy.
MEMORY_LIMIT = 1 << 34
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


@contextmanager
def open_packed(path: Path) -> Iterator[tuple[io.BufferedIOBase, int, bool]]:
    """The unpacked bytes of a file, the most that there can be of them, and whether the file is gzipped.

    Whether it is gzipped is told by its first bytes, never by its name. What goes wrong while
    reading, inside the `with` too, becomes a SourceError.
    """
    try:
        if not path.is_file():
            what = "is a folder or a device, not a file" if path.exists() else "no such file"
            raise SourceError(f"{path}: {what}; check the path in the recipe")
        size = path.stat().st_size
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as file:
                    yield file, size * DEFLATE_RATIO, True
            else:
                yield raw, size, False
    except SourceError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path}: damaged or cut short while unpacking it ({error}); fetch it again") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error


def fill(file: io.BufferedIOBase, size: int, place: str) -> npt.NDArray[np.uint8]:
    """The next `size` bytes, fewer where the file ends before."""
    if size > MEMORY_LIMIT:
        raise SourceError(
            f"{place}: {size} bytes are more than the {MEMORY_LIMIT} that are read into memory; "
            'save it as .npy and open it with kind = "arrays"'
        )
    try:
        values = np.empty(size, np.uint8)
    except MemoryError:
        raise SourceError(
            f'{place}: {size} bytes do not fit into memory; save it as .npy and open it with kind = "arrays"'
        ) from None
    view: Any = memoryview(values)  # type: ignore[arg-type]
    filled = 0
    while filled < size:
        piece = file.read(min(_CHUNK, size - filled))
        if not piece:
            break
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return values[:filled]
