"""Help, imports and what little the command line does by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import EXECUTABLE, Done, call, one_error_line

COMMANDS = [[], ["convert"], ["data"], ["data", "list"], ["data", "get"], ["demo"], ["dump"], ["eval"], ["fidelity"],
            ["info"], ["metrics"], ["objectives"], ["recipes"], ["run"], ["train"], ["verify"]]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "kdcache")
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(words: list[str], flag: str) -> None:
    from kdcache_cli.main import kdcache

    found = CliRunner().invoke(kdcache, [*words, flag])
    assert found.exit_code == 0, found.output
    assert "Example" in found.output
    assert found.output.startswith("Usage:")
    if words:
        assert f"kdcache {words[0]}" in found.output.split("Example")[1]


def test_help_lists_every_command() -> None:
    from kdcache_cli.main import kdcache

    names = kdcache.list_commands(None)  # type: ignore[arg-type]
    assert names == sorted({words[0] for words in COMMANDS if words})
    found = CliRunner().invoke(kdcache, ["-h"]).output
    assert all(f"\n  {name} " in found for name in names)


def test_the_exit_codes_that_help_states_are_those_of_the_errors() -> None:
    from kdcache_cli.main import kdcache

    from kdcache import errors

    said = " ".join(CliRunner().invoke(kdcache, ["-h"]).output.split())
    for name in errors.__all__:
        assert f" {getattr(errors, name).exit_code} " in said


def test_help_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import sys; sys.argv = ['kdcache', '-h']; "
         "from kdcache_cli import main; main()"], capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0
    assert "Usage: kdcache" in done.stdout
    seen = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "click" in seen
    assert not {name for name in seen if name.split(".")[0] in ("torch", "accelerate", "matplotlib", "sklearn")}


def test_importing_the_library_brings_no_torch() -> None:
    code = "import sys, kdcache; print(sorted({'torch', 'pyarrow', 'h5py', 'accelerate'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_command() -> None:
    done = call("--version")
    assert done.code == 0
    assert done.out.startswith("kdcache, version ")
    assert done.err == ""


def test_no_words_at_all_show_the_help() -> None:
    done = call()
    assert done.code in (0, 64)
    assert "Usage: kdcache" in done.out + done.err
    assert "kdcache: Usage" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmup"], "No such command 'dmup'"),
        (["dump"], "Missing argument"),
        (["info"], "Missing argument"),
        (["dump", "digits"], "Missing option '--out'"),
        (["convert", "a", "b", "--format", "csv"], "'csv' is not one of"),
        (["convert", "a", "b"], "Missing option '--format'"),
        (["run", "digits", "--out", "x", "--jobs", "0"], "0 is not in the range"),
        (["train", "digits", "--store", "s", "--out", "x", "--seed", "-1"], "is not in the range"),
        (["dump", "digits", "--out", "x", "--sett", "a=1"], "No such option"),
        (["recipes", "digitz"], "did you mean"),
        (["run", "nowhere.toml", "--out", "x"], "there is no such recipe"),
        (["data", "get", "fashion-mnits"], "fashion-mnist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_words_are_one_line_and_exit_64(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcache_cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdcache", *words])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    one_error_line(Done(int(str(ended.value.code)), out, err), 64, said)
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_listed_and_printed(tmp_path: Path) -> None:
    listed = call("recipes", "--json")
    facts = json.loads(listed.out)
    assert {"digits", "fashion-mnist-hinton", "fashion-mnist-few-labels"} <= facts.keys()
    assert all(facts[name]["about"] and Path(facts[name]["path"]).is_file() for name in facts)
    printed = call("recipes", "digits")
    assert printed.out == Path(facts["digits"]["path"]).read_text()
    from kdcache.recipe_file import load_recipe
    from kdcache.recipe_students import resolve_students

    for name in facts:
        assert resolve_students(load_recipe(Path(facts[name]["path"]))), name


def test_data_list(tmp_path: Path) -> None:
    done = call("data", "list", "--json", "--root", tmp_path)
    facts = json.loads(done.out)
    assert facts["root"] == str(tmp_path)
    assert {"fashion-mnist", "cifar-10", "cifar-100", "digits"} <= facts["datasets"].keys()
    assert not any(facts["datasets"]["fashion-mnist"]["splits"].values())
    assert all(facts["datasets"]["digits"]["splits"].values())
    assert "fashion-mnist" in call("data", "list", "--root", tmp_path).out


@pytest.mark.parametrize("words", ["recipes digits", "data list", "-h"])
def test_a_reader_that_has_gone_gets_no_traceback(words: str) -> None:
    done = subprocess.run(["bash", "-c", f"'{EXECUTABLE}' {words} | head -0; exit ${{PIPESTATUS[0]}}"],
                          capture_output=True, text=True, timeout=60, check=False, env={**os.environ})  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (0, 74)
