"""The only place that creates, renames, links or syncs files: what has its final name is whole and on disk.

A file is written under a temporary name, synced, and then published by `rename` (replace what is there) or by `link`
(create-only: the first writer wins, whoever that is). A failed fsync is never repeated on the same descriptor, because
Linux marks the pages clean after reporting the error once (Rebello et al., USENIX ATC 2020): a new file is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import StorageError, TrustError

__all__ = [
    "create_only",
    "create_text",
    "disk_errors",
    "open_regular",
    "read_bytes",
    "read_exactly",
    "remove",
    "replace",
    "replace_bytes",
    "replace_folder",
    "sync_folder",
    "write_temporary",
]

Bytes = bytes | bytearray | memoryview


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path, the cause and the cure."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        cure = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "no permission; choose another folder or change its mode",
            errno.EMFILE: "too many open files; raise `ulimit -n`",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"{path}: cannot {doing}: {cure}") from error


def write_temporary(folder: Path, data: Bytes, mode: int = 0o644) -> Path:
    """A new synced file in `folder` that holds `data`, under a name that nobody else uses."""
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}.tmp"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if attempt == 2 or not (isinstance(error, OSError) and error.errno == errno.EIO):
                raise
        else:
            return path
    raise AssertionError("unreachable")


def replace(temporary: Path, final: Path) -> None:
    """Publish a temporary file under its final name, over whatever has that name."""
    try:
        os.rename(temporary, final)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(final.parent)


def replace_bytes(path: Path, data: Bytes) -> None:
    """Write a whole file in one visible step, over whatever has that name."""
    with disk_errors(path):
        replace(write_temporary(path.parent, data), path)


def replace_folder(temporary: Path, final: Path) -> None:
    """Publish a folder whose files are already synced under its final name, which nothing may have yet."""
    with disk_errors(final):
        sync_folder(temporary)
        replace(temporary, final)


def create_only(temporary: Path, final: Path) -> bool:
    """Publish a temporary file under a name that must be new; False if somebody else was first."""
    try:
        os.link(temporary, final)
        created = True
    except FileExistsError:
        created = False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise StorageError(
                f"{final.parent}: this file system has no hard links, which make commits atomic; write the store to a "
                "local disk and copy it when it is finished"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    sync_folder(final.parent)
    return created


def create_text(path: Path, data: bytes, scratch: Path) -> bool:
    """Write `data` to a name that must be new, by way of the folder `scratch`; False if somebody else was first."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return create_only(write_temporary(scratch, data, 0o444), path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file of ours; one that is already gone is no error."""
    with disk_errors(path, "remove"), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file: never through a link, never a pipe or device (which could hang)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrustError(
                f"{path}: is a symbolic link; a store holds plain files only, so copy the file here"
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrustError(f"{path}: is not a plain file; a store holds plain files only")
    return descriptor


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole small file; refused (TrustError) if it is larger than `limit` bytes. FileNotFoundError passes."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise TrustError(f"{path}: {size} bytes, at most {limit} are read")
        data = bytearray(size)
        read = read_exactly(descriptor, memoryview(data), 0)
        return bytes(data[:read])
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill `into` from a place in the file; fewer bytes are returned only where the file ends."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
