"""Downloads from a real server on this machine, and the archives that come by them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdcache.errors import SourceError, StorageError, UsageError
from kdcache.sources import fetch, registry
from kdcache.sources.download import download
from kdcache.sources.fetch import unpack
from kdcache.sources.registry import Dataset

BODY = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """`files` by path; it can ignore ranges, or hang up after `cut` bytes; `asked` keeps (path, range)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/body": BODY}
        self.ranges = True
        self.cut: int | None = None
        self.length = True
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str = "/body") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.server.ranges else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body) if self.server.cut is None else start + self.server.cut
        self.wfile.write(body[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_reports_and_leaves_nothing_partial(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    download(
        server.url(),
        tmp_path / "new" / "body.gz",
        sha256=SHA256,
        size=len(BODY),
        progress=lambda *facts: seen.append(facts),
    )
    assert (tmp_path / "new" / "body.gz").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["body.gz"]
    assert seen[0] == ("body.gz", 0, len(BODY))
    assert seen[-1] == ("body.gz", len(BODY), len(BODY))


def test_interruption_and_resume(server: Server, tmp_path: Path) -> None:
    server.cut = 100_000
    target = tmp_path / "body"
    for here in (100_000, 200_000):
        with pytest.raises(StorageError, match=rf"after {here} of 307200 bytes.*run the same command again"):
            download(server.url(), target, sha256=SHA256, size=len(BODY))
        assert not target.exists()
        assert target.with_name("body.part").stat().st_size == here
    server.cut = None
    download(server.url(), target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY
    assert [span for _, span in server.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_ignores_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "body.part").write_bytes(b"x" * 1000)
    download(server.url(), tmp_path / "body", sha256=SHA256, size=len(BODY))
    assert (tmp_path / "body").read_bytes() == BODY


def test_a_complete_part_is_only_checked_and_one_too_long_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "body.part").write_bytes(BODY)
    download(server.url(), tmp_path / "body", sha256=SHA256, size=len(BODY))
    assert not server.asked
    (tmp_path / "body.part").write_bytes(BODY + b"x")
    download(server.url(), tmp_path / "body", sha256=SHA256, size=len(BODY))
    assert server.asked == [("/body", None)]


def test_wrong_digest_names_both_and_removes_the_part(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"expected sha256 {'0' * 64}, found {SHA256}"):
        download(server.url(), tmp_path / "body", sha256="0" * 64, size=len(BODY))
    assert not list(tmp_path.iterdir())


def test_another_size_is_another_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="offers 307200 bytes, expected 5"):
        download(server.url(), tmp_path / "body", sha256=SHA256, size=5)
    server.length = False
    with pytest.raises(SourceError, match="sends more than the 5 bytes"):
        download(server.url(), tmp_path / "body", sha256=SHA256, size=5)
    (tmp_path / "body.part").write_bytes(BODY)
    with pytest.raises(SourceError, match="ends before byte 307200"):
        download(server.url(), tmp_path / "body", sha256=SHA256, size=len(BODY) + 9)


def test_network_errors(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/nowhere: the server answers 404"):
        download(server.url("/nowhere"), tmp_path / "body", sha256=SHA256, size=9)
    with pytest.raises(StorageError, match=r"http://127.0.0.1:1/x: cannot be reached \(.*refused"):
        download("http://127.0.0.1:1/x", tmp_path / "body", sha256=SHA256, size=9)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "body"):
        with pytest.raises(UsageError, match="only http and https"):
            download(url, tmp_path / "body", sha256=SHA256, size=9)
    with pytest.raises(StorageError):
        download(server.url("/to/file:///etc/passwd"), tmp_path / "body", sha256=SHA256, size=9)
    download(server.url(f"/to/{server.url()}"), tmp_path / "body", sha256=SHA256, size=len(BODY))


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        download(server.url(), tmp_path / "file" / "body", sha256=SHA256, size=len(BODY))


def archive(path: Path, entries: dict[str, bytes | None]) -> bytes:
    """A .tar.gz; None makes a symbolic link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            entry.size = len(content or b"")
            tar.addfile(entry, io.BytesIO(content or b""))
    return path.read_bytes()


def test_unpack_takes_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "set" / "a.tar.gz"
    path.parent.mkdir()
    archive(path, {"x/one": b"1", "../evil": b"2", "/abs": b"3", "x/two": b"22", "x/readme": b"r"})
    assert [each.name for each in unpack(path, {"x/one": 1, "x/two": 2})] == ["one", "two"]
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == ["a.tar.gz", "one", "two"]


def test_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    archive(path, {"x/one": b"1234"})
    with pytest.raises(SourceError, match="x/one is 4 bytes, expected a file of 1"):
        unpack(path, {"x/one": 1})
    with pytest.raises(SourceError, match="does not hold x/two"):
        unpack(path, {"x/one": 4, "x/two": 2})
    whole = archive(path, {"x/one": None})
    with pytest.raises(SourceError, match="x/one is no plain file"):
        unpack(path, {"x/one": 0})
    for damaged in (whole[:40], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises(SourceError):
            unpack(path, {"x/one": 0})


def test_fetch_a_known_set(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive(tmp_path / "made.tar.gz", {"x/one.bin": b"1", "x/readme": b"r"})
    server.files["/set.tar.gz"] = packed
    toy = Dataset.model_validate(
        {
            "title": "toy",
            "licence": "none",
            "citation": "none",
            "homepage": "none",
            "splits": {"train": {"kind": "cifar", "files": ["one.bin"]}},
            "downloads": [
                {"file": "body.gz", "url": server.url(), "sha256": SHA256, "bytes": len(BODY)},
                {
                    "file": "set.tar.gz",
                    "url": server.url("/set.tar.gz"),
                    "sha256": hashlib.sha256(packed).hexdigest(),
                    "bytes": len(packed),
                    "members": {"x/one.bin": 1},
                },
            ],
        }
    )
    monkeypatch.setattr(registry, "known_datasets", lambda: {"toy": toy})
    folder = tmp_path / "root" / "toy"
    assert fetch("toy", tmp_path / "root") == (folder / "body.gz", folder / "one.bin")
    assert sorted(path.name for path in folder.iterdir()) == ["body.gz", "one.bin"]
    assert registry.is_present("toy", "train", tmp_path / "root")
    assert fetch("toy", tmp_path / "root") == ()
    assert len(server.asked) == 2
    (folder / "body.gz").write_bytes(BODY[:-1] + b"!")
    assert fetch("toy", tmp_path / "root") == (folder / "body.gz",)
    assert (folder / "body.gz").read_bytes() == BODY
