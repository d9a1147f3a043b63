"""Runs stages in processes of their own, a few at a time, and passes on what they tell."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdcache.errors import Interrupted, KdcacheError

__all__ = ["Stage", "Watcher", "run_stages"]

_reports: Any = None  # this process's end of the queue, set by _begin in each stage's process


@dataclass(frozen=True)
class Stage:
    """One call of a function of `stages` with a report function before its arguments."""

    name: str
    function: Callable[..., dict[str, Any]]
    args: tuple[Any, ...]
    leaves: Path | None = None  # the file that it writes last; a stage whose file is gone is not done


class Watcher(Protocol):
    """Is told of stages while they run; called from one thread at a time."""

    def began(self, name: str) -> None:
        """A stage begins."""

    def told(self, name: str, done: int, total: int, unit: str, note: str) -> None:
        """How far a stage is; total 0 means that `note` is a line for the reader."""

    def ended(self, name: str, facts: dict[str, Any], skipped: bool) -> None:
        """A stage is done, in this call or in an earlier one."""


def run_stages(
    stages: Sequence[Stage],
    jobs: int,
    watcher: Watcher,
    done: Callable[[Stage, dict[str, Any]], None],
    reuse: bool = False,
) -> None:
    """Run every stage in a fresh process, at most `jobs` at a time; `done` gets each one's facts as it ends.

    `reuse` lets a process go on with the next of these stages, where they are alike: loading torch costs seconds. The
    first error ends the others after their current step, and is raised as it is. Ctrl-C reaches every process, each
    keeps what it has, and Interrupted is raised.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    listener = threading.Thread(target=_listen, args=(reports, watcher), daemon=True)
    listener.start()
    executor = ProcessPoolExecutor(jobs, context, _begin, (reports, threads), max_tasks_per_child=None if reuse else 1)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        waiting = list(stages)
        running: dict[Future[dict[str, Any]], Stage] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                stage = waiting.pop(0)
                watcher.began(stage.name)
                with _no_interrupts():
                    running[executor.submit(_call, stage)] = stage
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                stage = running.pop(future)
                done(stage, future.result())
        executor.shutdown()
    except BrokenProcessPool as error:
        raise KdcacheError(
            "a stage's process was killed (out of memory?); what it had committed is kept, run the same command again"
        ) from error
    except KeyboardInterrupt as error:
        raise Interrupted("stopped on request; what is done is kept, run the same command again to go on") from error
    finally:
        _stop(executor)
        signal.signal(signal.SIGTERM, before)
        # A stage that was killed while it reported may have left the queue locked: that must not hold us up.
        reports.put(None)
        listener.join(timeout=5.0)
        reports.cancel_join_thread()
        reports.close()


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Hold SIGINT back; processes started meanwhile hold it back too, until `_begin` has told them what to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(executor: ProcessPoolExecutor) -> None:
    """Ask what still runs to stop: it keeps what it has, and the same command goes on from there."""
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
    executor.shutdown(wait=True, cancel_futures=True)


def _begin(reports: Any, threads: int) -> None:
    global _reports
    _reports = reports
    # Ctrl-C goes to the whole group; a stage that can stop well listens itself, any other is told by our parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Before torch is loaded: several stages at once must not each take every core.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def _call(stage: Stage) -> dict[str, Any]:
    def report(done: int, total: int, unit: str, note: str) -> None:
        _reports.put((stage.name, done, total, unit, note))

    return stage.function(report, *stage.args)


def _listen(reports: Any, watcher: Watcher) -> None:
    while True:
        try:
            item = reports.get(timeout=1.0)
        except queue.Empty:
            continue
        if item is None:
            return
        watcher.told(*item)
