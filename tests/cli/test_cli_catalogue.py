"""`kdcache objectives` and `kdcache metrics`: what a recipe can name is what they list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import forked, one_error_line

from kdcache.metrics import METRICS
from kdcache.objectives import OBJECTIVES


@pytest.mark.parametrize(("command", "known"), [("objectives", OBJECTIVES), ("metrics", METRICS)])
def test_lists_everything_with_a_line_each(tmp_path: Path, command: str, known: dict[str, object]) -> None:
    lines = forked(tmp_path, command).out.splitlines()
    assert [line.split()[0] for line in lines] == list(known)
    assert all(len(line.split()) > 3 for line in lines), "a line without words"
    facts = json.loads(forked(tmp_path, command, "--json").out)
    assert list(facts) == list(known)


def test_shows_one_with_its_options(tmp_path: Path) -> None:
    shown = forked(tmp_path, "objectives", "cc").out
    assert "Peng et al. 2019" in shown
    assert 'options: kernel = "gaussian", gamma = 0.4, order = 2' in shown
    assert json.loads(forked(tmp_path, "objectives", "crd", "--json").out)["crd"]["reads"] == ["id"]
    assert "better: lower" in forked(tmp_path, "metrics", "nll").out


def test_a_name_that_is_none(tmp_path: Path) -> None:
    one_error_line(forked(tmp_path, "objectives", "rkd"), 64, "objective 'rkd' is not known", "did you mean")
