"""One file over HTTP: resumed where it stopped, checked against its digest, put in place at once."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from kdcache.errors import SourceError, StorageError, UsageError
from kdcache.files import replace
from kdcache.fingerprint import file_digest

__all__ = ["Progress", "download"]

# File name, bytes that are here, bytes in all.
Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 16


def download(
    url: str, target: Path, *, sha256: str, size: int, progress: Progress | None = None, timeout: float = 30.0
) -> None:
    """Brings `url` to `target`. What has arrived is kept in `target`.part, so that the next call goes on from there.

    Raises StorageError where the network or the disk failed, SourceError where the server's file is another one.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url}: only http and https addresses are fetched")
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and part.stat().st_size > size:
            part.unlink()
        have = part.stat().st_size if part.exists() else 0
        if have < size:
            _transfer(url, part, have, size, progress or (lambda name, here, total: None), timeout)
        found = file_digest(part)
        if found != sha256:
            part.unlink()
            raise SourceError(
                f"{url}: expected sha256 {sha256}, found {found}; what was fetched is removed, run the command again"
            )
        replace(part, target)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error}); "
            "free some space or name another folder with --root"
        ) from error


def _transfer(url: str, part: Path, have: int, size: int, progress: Progress, timeout: float) -> None:
    with closing(_answer(url, have, timeout)) as answer:
        if answer.status != 206:  # the server sends the whole file, whatever it was asked for
            have = 0
        elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise StorageError(
                f"{url}: asked from byte {have} on, it sent {answer.headers.get('Content-Range')!r}; "
                f"remove {part} and run the command again"
            )
        coming = answer.headers.get("Content-Length")
        if coming is not None and coming != str(size - have):
            raise SourceError(f"{url}: the server offers {coming} bytes, expected {size - have}: it is another file")
        with part.open("ab" if have else "wb") as file:
            progress(part.stem, have, size)
            while chunk := _received(answer, url, have, size):
                have += len(chunk)
                if have > size:
                    raise SourceError(f"{url}: sends more than the {size} bytes expected: it is another file")
                file.write(chunk)
                progress(part.stem, have, size)
    if have < size:
        raise StorageError(
            f"{url}: the connection ended after {have} of {size} bytes; run the same command again to go on from there"
        )


def _answer(url: str, have: int, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "kdcache", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer: http.client.HTTPResponse = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
        return answer
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                raise SourceError(f"{url}: the server's file ends before byte {have}: it is another file") from error
            raise StorageError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise StorageError(f"{url}: cannot be reached ({reason})") from error


def _received(answer: http.client.HTTPResponse, url: str, have: int, size: int) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise StorageError(
            f"{url}: the connection broke after {have} of {size} bytes ({error}); "
            "run the same command again to go on from there"
        ) from error


def _opener() -> urllib.request.OpenerDirector:
    """Of urllib's handlers those for http and https alone, so that no redirection leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
