"""`kdcache objectives` and `kdcache metrics`: what a recipe can name is what they list."""

from __future__ import annotations

import json

import pytest
from command import kdcache

from kdcache.metrics import METRICS
from kdcache.objectives import OBJECTIVES


@pytest.mark.parametrize(("command", "known"), [("objectives", OBJECTIVES), ("metrics", METRICS)])
def test_lists_everything_with_a_line_each(command: str, known: dict[str, object]) -> None:
    lines = kdcache(command).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(known)
    assert all(len(line.split()) > 3 for line in lines), "a line without words"
    facts = json.loads(kdcache(command, "--json").stdout)
    assert list(facts) == list(known)


def test_shows_one_with_its_options() -> None:
    shown = kdcache("objectives", "cc").stdout
    assert "Peng et al. 2019" in shown
    assert 'options: kernel = "gaussian", gamma = 0.4, order = 2' in shown
    assert json.loads(kdcache("objectives", "crd", "--json").stdout)["crd"]["reads"] == ["id"]
    assert "better: lower" in kdcache("metrics", "nll").stdout


def test_a_name_that_is_none() -> None:
    done = kdcache("objectives", "rkd", check=False)
    assert done.returncode == 64
    assert "did you mean" in done.stderr
