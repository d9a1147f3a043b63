"""`kdcache` as a user runs it: the installed command, or the same in a process where torch is imported already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

__all__ = ["EXECUTABLE", "Done", "Running", "call", "forked", "one_error_line", "start", "until"]

EXECUTABLE = Path(sys.executable).with_name("kdcache")
DOCUMENTED = {64, 65, 74, 75, 77}

# A real process each, started in no time: a server has imported the heavy libraries once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["torch", "torch._dynamo", "accelerate", "safetensors.torch", "tensorboardX", "pydantic", "pyarrow.parquet", "h5py",
     "sklearn.datasets", "matplotlib", "rich.progress", "click"]
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a command ended. A negative code is the signal that killed it."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A command in a forked process, the leader of its own process group."""

    process: BaseProcess
    files: tuple[Path, Path]

    def signal(self, number: int, *, group: bool = False) -> None:
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> Done:
        """SIGKILL to the whole group, or to the process alone if it has not come so far as to lead one."""
        for group in (True, False):
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL, group=group)
        return self.wait()

    def wait(self, timeout: float = 280.0) -> Done:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        out, err = (path.read_text() for path in self.files)
        return Done(self.process.exitcode, out, err)


def call(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 280) -> Done:
    """The installed command, started from nothing."""
    done = subprocess.run(
        [str(EXECUTABLE), *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd,
        env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def start(
    folder: Path, *words: object, env: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
) -> Running:
    """Begin a command; what it prints goes to files in `folder`. `before` runs first in its process."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    files = folder / f"{number}.out", folder / f"{number}.err"
    process = _PROCESSES.Process(target=_main, args=(tuple(map(str, words)), files, dict(env or {}), before))
    process.start()
    return Running(process, files)


def forked(folder: Path, *words: object, **options: object) -> Done:
    """Run a command to its end."""
    return start(folder, *words, **options).wait()  # type: ignore[arg-type]


def _main(
    words: tuple[str, ...], files: tuple[Path, Path], env: dict[str, str], before: Callable[[], None] | None
) -> None:
    os.setsid()
    for path, descriptor in zip(files, (1, 2), strict=True):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(env)
    sys.argv = ["kdcache", *words]
    if before:
        before()
    from kdcache_cli import main

    main()


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait for something that another process is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def one_error_line(done: Done, code: int, *said: str) -> None:
    """The command refused as documented: its code, one line that says all of `said`, nothing on stdout."""
    assert done.code == code, (done.code, done.err)
    assert code in DOCUMENTED
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert lines, "nothing was said"
    assert lines[-1].startswith("kdcache: ")
    assert sum(line.startswith("kdcache:") for line in lines) == 1, done.err
    for words in said:
        assert words in lines[-1], lines[-1]
