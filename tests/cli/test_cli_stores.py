"""`info`, `verify`, `convert`, `train` and `eval` on sound, unfinished, damaged, newer and hostile stores."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_stores import edit, flip, write_recipe, write_store
from command import Done, call, forked, one_error_line


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.toml, and one store in each format: parquet/ and hdf5/."""
    folder = tmp_path_factory.mktemp("stores")
    write_recipe(folder)
    write_store(folder, name="parquet")
    write_store(folder, ("[store]", '[store]\nformat = "hdf5"'), name="hdf5")
    return folder


@pytest.fixture
def copy(stores: Path, tmp_path: Path) -> Path:
    """A copy of the Parquet store, to be damaged."""
    return Path(shutil.copytree(stores / "parquet", tmp_path / "copy"))


def kd(tmp_path: Path, *words: object) -> Done:
    return forked(tmp_path / "said", *words)


def facts_of(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    assert done.err == ""
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_info(stores: Path, container: str) -> None:
    facts = facts_of(call("info", stores / container, "--json"))
    assert {"rows", "format", "digest", "fields", "bytes", "units", "complete"} <= facts.keys()
    assert (facts["rows"], facts["units"], facts["format"], facts["complete"]) == (200, 4, container, True)
    assert facts["bytes"] == sum(p.stat().st_size for p in (stores / container / "data").iterdir())
    assert list(facts["fields"]) == ["id", "input", "label", "logits"]
    text = call("info", stores / container).out
    assert facts["digest"] in text
    assert "topk" in text
    assert "KL(teacher ‖ stored)" in text


def test_verify(stores: Path, copy: Path) -> None:
    facts = facts_of(call("verify", stores / "parquet", "--deep", "--json"))
    assert (facts["rows"], facts["units"], facts["deep"], facts["strange_files"]) == (200, 4, True, [])
    (copy / "data" / "\x1b[31mstrange").write_bytes(b"")
    done = call("verify", copy)
    assert done.code == 0
    assert "not part of the store" in done.out
    assert "\x1b" not in done.out


def test_info_and_verify_import_no_torch(stores: Path) -> None:
    done = call("verify", stores / "parquet", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0
    assert "numpy" in done.err
    assert not [line for line in done.err.splitlines() if line.split("|")[-1].strip() == "torch"]


@pytest.mark.parametrize("words", [("verify",), ("verify", "--deep")])
@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_any_flipped_or_missing_byte_of_a_shard_is_refused(
    stores: Path, tmp_path: Path, container: str, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    from kdcache.errors import KdcacheError
    from kdcache.store import verify

    for seed in range(8):
        copy = Path(shutil.copytree(stores / container, tmp_path / f"copy-{seed}"))
        chosen = random.Random(seed)
        victim = chosen.choice(sorted((copy / "data").iterdir()))
        if seed % 4 == 3:
            victim.chmod(0o644)
            victim.write_bytes(victim.read_bytes()[: chosen.randrange(victim.stat().st_size)])
        else:
            flip(victim, chosen.randrange(victim.stat().st_size))
        with pytest.raises(KdcacheError) as error:  # here in this process; the command itself below
            verify(copy, "--deep" in words)
        assert error.value.exit_code in (65, 77)
        if seed in (0, 3):
            one_error_line(call(words[0], copy, *words[1:]), 65, victim.name)


def test_a_store_that_is_unfinished(copy: Path, stores: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "units" / "000002.json").unlink()
    one_error_line(call("verify", copy), 65, "is unfinished; its 3 committed units of 4 are sound", "kdcache dump")
    facts = facts_of(call("info", copy, "--json"))
    assert (facts["complete"], facts["digest"], facts["units_committed"]) == (False, None, 3)
    assert "unfinished: 3 of 4 units" in call("info", copy).out
    one_error_line(kd(tmp_path, "train", stores / "small.toml", "--store", copy, "--out", tmp_path / "run"), 65,
                   str(copy))  # fmt: skip
    one_error_line(call("convert", copy, tmp_path / "converted", "--format", "hdf5"), 65, str(copy))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_store_of_a_newer_format(copy: Path) -> None:
    edit(copy / "plan.json", version=2)
    for words in (("info", copy), ("verify", copy), ("info", copy, "--json")):
        one_error_line(call(*words), 65, "version 2", "reads 1")


@pytest.mark.parametrize("what", ["plan.json", "manifest.json", "units/000001.json"])
def test_a_store_whose_papers_were_changed(copy: Path, what: str) -> None:
    path = copy / what
    flip(path, path.stat().st_size // 2)
    done = call("verify", copy)
    one_error_line(done, done.code, "copy")
    assert done.code in (65, 77)


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for words in (("info", tmp_path), ("verify", tmp_path), ("info", tmp_path / "nowhere"),
                  ("convert", tmp_path, tmp_path / "out", "--format", "hdf5")):  # fmt: skip
        done = call(*words)
        one_error_line(done, done.code, str(tmp_path))
        assert done.code in (64, 65)
    one_error_line(call("info", tmp_path / "file"), 64, "is a file")


def test_escapes_from_a_store_never_reach_the_terminal(copy: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\r\n"
    plan = json.loads((copy / "plan.json").read_bytes())
    source = {**plan["source"], "name": evil, "class_names": [evil] * 10}
    edit(copy / "plan.json", source=source, teacher={**plan["teacher"], "model": evil})
    (copy / "manifest.json").unlink()
    done = call("info", copy)
    assert done.code == 0, done.err
    both = done.out + done.err
    assert not [c for c in both if not c.isprintable() and c != "\n"]
    assert "owned" in both
    text = call("info", copy, "--json").out
    assert "\x1b" not in text
    assert json.loads(text)["source"]["name"] == evil
    edit(copy / "plan.json", source=source, order={"kind": evil, "seed": 0})
    done = call("info", copy)
    assert done.code in (65, 77)
    assert not [c for c in done.err if not c.isprintable() and c != "\n"]


def test_convert_there_and_back(stores: Path, tmp_path: Path) -> None:
    one = facts_of(call("convert", stores / "parquet", tmp_path / "h5", "--format", "hdf5", "--json"))
    assert one["rows"] == 200
    assert "digest" in call("convert", tmp_path / "h5", tmp_path / "back", "--format", "parquet").out
    names = [sorted(p.name for p in (s / "data").iterdir()) for s in (stores / "parquet", tmp_path / "back")]
    assert names[0] == names[1]
    one_error_line(call("convert", stores / "hdf5", tmp_path / "x", "--format", "hdf5", "--compression", "lz4"), 64,
                   "--compression lz4 is not for hdf5")  # fmt: skip


def test_train_and_eval(stores: Path, tmp_path: Path) -> None:
    recipe, store = stores / "small.toml", stores / "parquet"
    words = ("train", recipe, "--store", store, "--out", tmp_path / "run", "--eval-store", stores / "hdf5")
    facts = json.loads((done := kd(tmp_path, *words, "--json")).out)
    assert done.code == 0, done.err
    assert (facts["steps"], facts["seed"], facts["run"]) == (4, 0, str(tmp_path / "run"))
    found = json.loads(kd(tmp_path, "eval", tmp_path / "run", "--store", store, "--json").out)
    assert found["labelled"] == 80
    assert found["accuracy"] == pytest.approx(facts["accuracy"])
    assert "accuracy" in kd(tmp_path, "eval", tmp_path / "run", "--store", store).out
    weights = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert json.loads(kd(tmp_path, *words, "--json").out)["accuracy"] == facts["accuracy"]
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == weights, "a finished fit is not done again"
    one_error_line(kd(tmp_path, *words, "--seed", "1"), 65, "belongs to another fit", "seed")
    baseline = kd(tmp_path, *words[:4], "--out", tmp_path / "baseline", "--baseline", "--json")
    assert json.loads(baseline.out)["steps"] == 4


def test_train_that_cannot_be(stores: Path, tmp_path: Path) -> None:
    recipe, store = stores / "small.toml", stores / "parquet"
    out = ("--out", tmp_path / "run")

    def train(*words: object) -> Done:
        return kd(tmp_path, "train", *words)

    one_error_line(train(recipe, "--store", tmp_path / "nowhere", *out), 65, "nowhere")
    one_error_line(train(recipe, "--store", store, *out, "--eval-store", tmp_path / "nowhere"), 65, "nowhere")
    assert not (tmp_path / "run").exists(), "refused before the fit, not after it"
    one_error_line(train(recipe, "--store", store, *out, "--student", "other"), 64, "--student other: the recipe names")
    one_error_line(train(recipe, "--store", store, *out, "--set", "objective.0.name=kdd"), 64, "did you mean", "kd")
    one_error_line(train(recipe, "--store", store, *out, "--set", "student.model=zoo:mpl"), 64, "did you mean", "mlp")
    one_error_line(train(recipe, "--store", store, *out, "--set", "objective.0.temperature=0.5"), 64, "below 1")
    (tmp_path / "eleven.py").write_text(
        "import torch\ndef net(input_shape):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 11))\n"
    )
    own = write_recipe(tmp_path, ('[student]\nmodel = "zoo:mlp"\nargs = { hidden = [8] }',
                                  '[student]\nmodel = "eleven:net"'), name="own")  # fmt: skip
    one_error_line(train(own, "--store", store, *out), 64, "[2, 11]", "[2, 10]")


def test_evaluating_what_is_not_there(stores: Path, tmp_path: Path) -> None:
    one_error_line(kd(tmp_path, "eval", tmp_path / "no-run", "--store", stores / "parquet"), 65, "no model.safetensors")
