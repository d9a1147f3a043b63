"""Bad recipes and bad data through `kdcache dump` and `kdcache run`: one line, a documented code, nothing lost."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from cli_stores import RECIPE, write_recipe
from command import Done, call, forked, one_error_line


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes."""
    return gzip.compress(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "images.gz").write_bytes(idx(draw.integers(0, 256, (200, 8, 8), np.uint8)))
    (tmp_path / "labels.gz").write_bytes(idx((np.arange(200) % 10).astype(np.uint8)))
    (tmp_path / "short.gz").write_bytes(idx(draw.integers(0, 256, (190, 8, 8), np.uint8)))
    (tmp_path / "cut.gz").write_bytes((tmp_path / "images.gz").read_bytes()[:2000])
    (tmp_path / "empty.gz").write_bytes(b"")
    (tmp_path / "other.gz").write_bytes(b"this is no gzip file at all")
    return tmp_path


IDX = ('kind = "digits"', 'kind = "idx"\nimages = "images.gz"\nlabels = "labels.gz"')


def swap(images: str = "images.gz", labels: str = "labels.gz") -> tuple[str, str]:
    return 'kind = "digits"', f'kind = "idx"\nimages = "{images}"\nlabels = "{labels}"'


# what is wrong, exit code, words of the message
CASES = {
    "typo": ([IDX, ("unit_rows", "unit_row")], 64, ["'store.unit_row'", "'unit_rows'"]),
    "missing file": ([swap("nowhere.gz")], 65, ["nowhere.gz"]),
    "empty file": ([swap("empty.gz")], 65, ["empty.gz"]),
    "cut file": ([swap("cut.gz")], 65, ["cut.gz"]),
    "no gzip": ([swap("other.gz")], 65, ["other.gz"]),
    "labels for images": ([swap("labels.gz", "images.gz")], 65, ["labels.gz"]),
    "fewer images than labels": ([swap("short.gz")], 65, ["190", "200"]),
    "unknown model": ([IDX, ("zoo:mlp", "zoo:mlq")], 64, ["zoo:mlq", "did you mean", "mlp"]),
    "unknown argument": ([IDX, ("{ hidden = [8] }", "{ hiden = [8] }")], 64, ["hiden", "hidden"]),
    "k too large": ([IDX, ("k = 3", "k = 4000")], 64, ["k = 4000", "10"]),
    "k for dense": ([IDX, ('"topk"', '"dense"')], 64, ["fields.logits", "'k'"]),
    "not toml": ([IDX, ("[train]", "[[[")], 64, ["not a TOML file"]),
    "negative temperature": ([IDX, ("temperature = 2.0", "temperature = -2.0")], 64, ["temperature", "-2.0"]),
    "too many rows": ([IDX, ("rows = 200", "rows = 201")], 64, ["201", "200"]),
    "too many labels": ([IDX, ("labelled = 80", "labelled = 300")], 64, ["300"]),
    "absent dataset": ([('kind = "digits"', 'dataset = "fashion-mnist"')], 65, ["kdcache data get fashion-mnist"]),
    "unknown dataset": ([('kind = "digits"', 'dataset = "fashion-mnits"')], 64, ["fashion-mnist"]),
}  # fmt: skip


def kd(folder: Path, *words: object) -> Done:
    return forked(folder / "said", *words, env={"KDCACHE_DATA": str(folder / "no-data")})


@pytest.mark.parametrize("case", CASES)
def test_a_bad_recipe_is_refused_and_leaves_nothing(folder: Path, case: str) -> None:
    changes, code, said = CASES[case]
    done = kd(folder, "dump", write_recipe(folder, *changes, name="bad"), "--out", folder / "store")
    one_error_line(done, code, *said)
    assert not (folder / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_bad_recipe_is_refused_by_run_too(folder: Path, case: str) -> None:
    changes, code, said = CASES[case]
    done = kd(folder, "run", write_recipe(folder, *changes, name="bad"), "--out", folder / "run", "--jobs", "1")
    assert "Traceback" not in done.err
    assert done.code == code, done.err
    assert all(words in done.err.splitlines()[-1] for words in said), done.err
    assert not (folder / "run" / "results.json").exists()


def test_dump_prints_facts(folder: Path) -> None:
    recipe = write_recipe(folder, IDX)
    plan = json.loads(kd(folder, "dump", recipe, "--out", folder / "store", "--plan-only", "--json").out)
    assert not (folder / "store").exists()
    done = kd(folder, "dump", recipe, "--out", folder / "store", "--json")
    facts = json.loads(done.out)
    assert (plan["rows"], plan["units"]) == (facts["rows"], facts["units"]) == (200, 4)
    assert plan["bytes"] == 200 * sum(plan["fields"].values()) == 200 * plan["bytes_per_row"]
    assert set(facts["fidelity"]["logits"]["kl"]) == {"1", "2", "4"}
    told = kd(folder, "dump", recipe, "--out", folder / "store").out
    assert "all there already" in told
    assert facts["digest"] in told
    assert "rows in 4 units" in kd(folder, "dump", recipe, "--out", folder / "store", "--plan-only").out


def test_set_reaches_the_recipe(folder: Path) -> None:
    recipe = write_recipe(folder, IDX)
    words = ("dump", recipe, "--out", folder / "store", "--plan-only", "--json")
    plan = json.loads(kd(folder, *words, "--set", "source.rows=90", "--set", "fields.logits.k=2").out)
    assert plan["rows"] == 90
    assert plan["fields"]["logits"] == 1 + 2 * 2 + 6  # two indices of 4 bits, two values, the tail
    one_error_line(kd(folder, *words, "--set", "store.unit_row=1"), 64, "'unit_rows'")


def test_another_recipe_into_the_same_store(folder: Path) -> None:
    assert kd(folder, "dump", write_recipe(folder, IDX), "--out", folder / "store").code == 0
    done = kd(folder, "dump", write_recipe(folder, IDX, ("k = 3", "k = 4")), "--out", folder / "store")
    one_error_line(done, 65, "another plan", str(folder / "store"))


SEVERAL = (
    ("[fields.logits]", "[stores.few.fields.logits]"),
    ("[student]", '[stores.exact.fields.logits]\ndtype = "float32"\n[student]\nstore = "few"'),
)


def test_one_of_the_recipes_stores(folder: Path) -> None:
    recipe = write_recipe(folder, IDX, *SEVERAL)
    words = ("dump", recipe, "--out", folder / "exact")
    one_error_line(kd(folder, *words), 64, "names 2 stores: choose one with --store, of few, exact")
    one_error_line(kd(folder, *words, "--store", "fwe"), 64, "--store fwe", "did you mean", "'few'")
    plain = ("dump", write_recipe(folder, IDX, name="plain"), "--out", folder / "exact", "--store", "few")
    one_error_line(kd(folder, *plain), 64, "has no [stores]", "leave --store out")
    plan = json.loads(kd(folder, *words, "--store", "few", "--plan-only", "--json").out)
    assert plan["fields"]["logits"] == 2 + 2 * 3 + 6
    assert not (folder / "exact").exists()
    facts = json.loads(kd(folder, *words, "--store", "exact", "--json").out)
    assert facts["fidelity"]["logits"]["bytes_per_row"] == 40
    # The student's own store is another one; the folder that is given is what it learns from.
    done = kd(folder, "train", recipe, "--store", folder / "exact", "--out", folder / "fit", "--json")
    assert done.code == 0, done.err
    assert json.loads((folder / "fit" / "result.json").read_text())["stores"] == [facts["digest"]]


def test_the_budget_of_one_of_the_stores(folder: Path) -> None:
    exact = 'k = 3\n[stores.exact.fields.logits]\ncodec = "dense"\nbudget = { max_bytes = 40 }\n'
    recipe = write_recipe(folder, IDX, SEVERAL[0], ("k = 3\n", exact))
    done = kd(folder, "fidelity", recipe, "--store", "exact", "--rows", "40", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["chosen"], facts["budget"]["max_bytes"]) == ("dense dtype float32", 40)
    assert {trial["codec"] for trial in facts["trials"]} == {"dense"}
    one_error_line(kd(folder, "fidelity", recipe, "--store", "exat"), 64, "--store exat", "'exact'")


def test_places_that_cannot_be_written(folder: Path) -> None:
    recipe = write_recipe(folder, IDX)
    (folder / "file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("")
    one_error_line(kd(folder, "dump", recipe, "--out", folder / "file"), 64, "is a file")
    one_error_line(kd(folder, "dump", recipe, "--out", folder / "full"), 64, "thesis.tex")
    done = kd(folder, "dump", recipe, "--out", "/proc/nowhere/store")
    one_error_line(done, done.code, "/proc/nowhere")
    done = kd(folder, "dump", recipe, "--out", folder / "file" / "store")
    one_error_line(done, done.code, "file")


def test_the_installed_command_refuses_alike(folder: Path) -> None:
    bad = write_recipe(folder, IDX, ("[store]", "[stroe]"))
    one_error_line(call("run", bad, "--out", folder / "run"), 64, "'stroe'", "'store'")
    one_error_line(call("dump", folder, "--out", folder / "run"), 64, str(folder))
    assert RECIPE.count("[store]") == 1


def test_a_table_is_listed_under_every_name_that_it_may_have() -> None:
    done = call("recipes", "--keys")
    assert done.code == 0, done.err
    for names in (
        "[source], [eval_source], [teacher.source]",
        "[teacher], [teachers.NAME]",
        "[[objective]], [[baseline]]",
    ):
        assert names in done.out
