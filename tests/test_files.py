"""Files that are whole or not there, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kdcache import files
from kdcache.errors import KdcacheError, StorageError, TrustError


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a fresh process, which may patch or limit what it likes."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_replace_and_create_only(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.replace_bytes(path, b"one")
    files.replace_bytes(path, bytearray(b"two"))
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    new = tmp_path / "deep" / "g"
    assert files.create_text(new, b"first", tmp_path / "tmp")
    assert not files.create_text(new, b"second", tmp_path / "tmp")
    assert new.read_bytes() == b"first"
    assert new.stat().st_mode & 0o777 == 0o444
    assert new.stat().st_nlink == 1
    assert os.listdir(tmp_path / "tmp") == []
    assert sorted(os.listdir(tmp_path)) == ["deep", "f", "tmp"]


def test_an_empty_and_a_large_file(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    for content in (b"", data, memoryview(data)[5:]):
        files.replace_bytes(tmp_path / "f", content)
        assert files.read_bytes(tmp_path / "f", 1 << 23) == bytes(content)


def test_a_folder_is_published_whole_and_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.replace_bytes(tmp_path / name / "f", name.encode())
    files.replace_folder(tmp_path / "a", tmp_path / "final")
    with pytest.raises(StorageError, match="final: cannot write"):
        files.replace_folder(tmp_path / "b", tmp_path / "final")
    assert (tmp_path / "final" / "f").read_bytes() == b"a"


def test_remove_twice(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    files.remove(tmp_path / "f")
    files.remove(tmp_path / "f")
    assert not (tmp_path / "f").exists()


FSYNC = """
import errno, os, sys
from pathlib import Path
from kdcache import files
from kdcache.errors import StorageError
folder, failures = Path(sys.argv[1]), int(sys.argv[2])
real, seen = os.fsync, []
def fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    seen.append(path)
    if len(seen) <= failures:
        raise OSError(errno.EIO, "Input/output error")
    real(descriptor)
os.fsync = fsync
try:
    files.replace_bytes(folder / "f", b"bytes")
    print("written")
except StorageError as error:
    print("refused", error)
assert len(set(seen[:2])) == 2, seen  # never the same file again
print(sorted(os.listdir(folder)))
"""


def test_after_one_failed_fsync_the_bytes_go_to_a_new_file(tmp_path: Path) -> None:
    done = run(FSYNC, tmp_path, 1)
    assert done.stdout == "written\n['f']\n", done.stderr
    assert (tmp_path / "f").read_bytes() == b"bytes"


def test_after_two_failed_fsyncs_it_gives_up_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(FSYNC, tmp_path, 2)
    assert done.stdout == f"refused {tmp_path}/f: cannot write: Input/output error\n[]\n", done.stderr


LIMIT = """
import os, resource, signal, sys
from pathlib import Path
from kdcache import files
from kdcache.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.replace_bytes(Path(sys.argv[1]) / "f", bytes(1001))
except StorageError as error:
    print(error.exit_code, error)
files.replace_bytes(Path(sys.argv[1]) / "g", bytes(1000))
print(sorted(os.listdir(sys.argv[1])))
"""


def test_a_real_error_of_the_kernel_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    done = run(LIMIT, tmp_path)
    assert done.stdout == f"74 {tmp_path}/f: cannot write: File too large\n['f', 'g']\n", done.stderr
    assert (tmp_path / "f").read_bytes() == b"old"


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    files.replace_bytes(tmp_path / "f", bytes(range(100)))
    assert (tmp_path / "f").read_bytes() == bytes(range(100))


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.replace_bytes(tmp_path / "f", b"x")
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(StorageError, match="f: cannot write: Is a directory"):
        files.replace_bytes(tmp_path / "f", b"x")
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageError, match=r"no hard links.*write the store to a local disk"):
        files.create_text(tmp_path / "f", b"x", tmp_path / "tmp")
    assert not (tmp_path / "f").exists()
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only; choose another folder"),
        (errno.EACCES, "no permission"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ESTALE, os.strerror(errno.ESTALE)),
    ],
)
def test_every_error_of_the_disk_has_a_place_and_a_cure(number: int, cure: str) -> None:
    with (
        pytest.raises(StorageError, match=rf"some/place: cannot list: .*{cure}") as caught,
        files.disk_errors(Path("some/place"), "list"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 74
    with pytest.raises(StorageError, match=r"^inner$"), files.disk_errors(Path("x")):
        raise StorageError("inner")


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        with pytest.raises(TrustError, match=f"{name}: is (a symbolic link|not a plain file)"):
            files.read_bytes(tmp_path / name, 100)
    with pytest.raises(TrustError, match="not a plain file"):
        files.read_bytes(Path("/dev/zero"), 100)
    with pytest.raises(TrustError, match="plain: 6 bytes, at most 5 are read"):
        files.read_bytes(tmp_path / "plain", 5)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "nothing", 5)


def test_refusals_leak_no_descriptor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "f").write_bytes(bytes(10))
    before = len(os.listdir("/proc/self/fd"))
    for name in ("pipe", "f"):
        for _ in range(20):
            with pytest.raises(KdcacheError):
                files.read_bytes(tmp_path / name, 5)
    assert len(os.listdir("/proc/self/fd")) == before
    assert before < resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_reading_by_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(10)))
    descriptor = files.open_regular(tmp_path / "f")
    into = bytearray(4)
    assert files.read_exactly(descriptor, memoryview(into), 3) == 4
    assert into == bytes([3, 4, 5, 6])
    assert files.read_exactly(descriptor, memoryview(into), 8) == 2
    assert files.read_exactly(descriptor, memoryview(into), 10) == 0
    os.close(descriptor)
