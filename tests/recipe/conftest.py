"""One finished run that the tests of recipes look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from command import Done, call
from recipe_runs import SPY, write


@dataclass(frozen=True)
class Finished:
    """A run through the installed command, and which rooms each of its processes imported."""

    recipe: Path
    out: Path
    done: Done
    imports: dict[str, set[str]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    recipe, out, log = write(folder), folder / "out", folder / "imports.log"
    (folder / "spy").mkdir()
    (folder / "spy" / "sitecustomize.py").write_text(SPY)
    spy = {"PYTHONPATH": str(folder / "spy"), "KDCACHE_SPY": str(log)}
    done = call("run", recipe, "--out", out, "--jobs", "2", env=spy)
    imports: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        process, name = line.split()
        imports.setdefault(process, set()).add(name)
    return Finished(recipe, out, done, imports)
