"""A known dataset from its publisher into the folder where sources look for it."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from kdcache.errors import SourceError, StorageError
from kdcache.files import replace
from kdcache.fingerprint import file_digest
from kdcache.recipe_file import data_root
from kdcache.sources.download import Progress, download
from kdcache.sources.registry import Download, find_dataset

__all__ = ["fetch", "unpack"]

_CHUNK = 1 << 20


def fetch(name: str, root: Path | None = None, progress: Progress | None = None) -> tuple[Path, ...]:
    """The files that were brought to `root`/`name` (default `data_root()`); () where all were there and whole."""
    folder = (root or data_root()) / name
    brought: list[Path] = []
    for record in find_dataset(name).downloads:
        if _is_here(record, folder):
            continue
        target = folder / record.file
        download(record.url, target, sha256=record.sha256, size=record.bytes, progress=progress)
        if record.members:
            brought += unpack(target, record.members)
            target.unlink()
        else:
            brought.append(target)
    return tuple(brought)


def unpack(archive: Path, members: Mapping[str, int]) -> list[Path]:
    """Takes `members` (name in the .tar.gz → its exact bytes), and nothing else, out beside the archive."""
    taken: dict[str, Path] = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                if entry.name not in members:
                    continue
                if not entry.isreg() or entry.size != members[entry.name]:
                    what = f"{entry.size} bytes" if entry.isreg() else "no plain file"
                    raise SourceError(f"{archive}: {entry.name} is {what}, expected a file of {members[entry.name]}")
                content = tar.extractfile(entry)
                assert content is not None  # it is a plain file
                taken[entry.name] = archive.with_name(PurePosixPath(entry.name).name)
                _copy(content, taken[entry.name])
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceError(f"{archive}: damaged archive ({error}); remove it and fetch it again") from error
    except StorageError:
        raise
    except OSError as error:
        raise SourceError(f"{archive}: cannot be unpacked ({error.strerror or error})") from error
    if absent := sorted(members.keys() - taken.keys()):
        raise SourceError(f"{archive}: does not hold {', '.join(absent)}; it is another archive")
    return list(taken.values())


def _copy(content: IO[bytes], target: Path) -> None:
    part = target.with_name(target.name + ".part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise StorageError(f"{part}: cannot be written ({error.strerror})") from error
    with file:
        while chunk := content.read(_CHUNK):  # outside of the `try`: what fails here is the archive
            _write(file, chunk, part)
    replace(part, target)


def _write(file: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise StorageError(f"{part}: cannot be written ({error.strerror}); free some space") from error


def _is_here(record: Download, folder: Path) -> bool:
    if record.members:
        files = {folder / PurePosixPath(name).name: size for name, size in record.members.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    path = folder / record.file
    return path.is_file() and path.stat().st_size == record.bytes and file_digest(path) == record.sha256
