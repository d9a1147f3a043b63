"""`kdcache data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from kdcache_cli.data import data

from kdcache.errors import UsageError


def run(*arguments: str) -> str:
    found = CliRunner().invoke(data, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.parametrize("command", [(), ("list",), ("get",)])
def test_help_ends_with_an_example(command: tuple[str, ...]) -> None:
    for flag in ("-h", "--help"):
        assert "Example: kdcache data " in run(*command, flag)


def test_list_says_what_is_here(data_root: Path, tmp_path: Path) -> None:
    assert "here: train, test" in run("list", "--root", str(data_root))
    facts = json.loads(run("list", "--json", "--root", str(tmp_path)))
    assert facts["root"] == str(tmp_path)
    assert facts["datasets"]["fashion-mnist"]["splits"] == {"train": False, "test": False}
    assert facts["datasets"]["fashion-mnist"]["licence"] == "MIT"
    assert facts["datasets"]["fashion-mnist"]["bytes"] == 30_878_645
    assert facts["datasets"]["digits"]["splits"] == {"train": True, "test": True}
    assert "absent, 31 MB to fetch" in run("list", "--root", str(tmp_path))


def test_get_what_is_here_fetches_nothing(data_root: Path) -> None:
    assert "all there already" in run("get", "fashion-mnist", "--root", str(data_root))
    assert "comes with scikit-learn" in run("get", "digits")


def test_get_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'cifar-10'"):
        CliRunner().invoke(data, ["get", "cifar10"], catch_exceptions=False)
