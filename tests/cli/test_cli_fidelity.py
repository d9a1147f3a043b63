"""`kdcache fidelity`: the table, the front, the choice, the plot; and budgets in `dump`, its plan and `info`."""

from __future__ import annotations

import json
import signal
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from cli_stores import write_recipe
from command import Done, forked, one_error_line

TOPK = ("--set", 'fields.logits={budget={max_bytes=99},codec="topk"}')


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("fidelity"))


def kd(tmp_path: Path, *words: object) -> Done:
    return forked(tmp_path / "said", *words)


def test_table_choice_and_plot(recipe: Path, tmp_path: Path) -> None:
    words = ("fidelity", recipe, "--max-kl", "1e-4", "--rows", 120, "--at-temperature", 1, "--at-temperature", 8)
    done = kd(tmp_path, *words, "--out", tmp_path / "plots" / "found.svg", "--json")
    assert done.code == 0, done.err
    facts: dict[str, Any] = json.loads(done.out)
    assert (facts["rows_fitted"], facts["rows_held_out"]) == (90, 30)
    by_name = {trial["name"]: trial for trial in facts["trials"]}
    assert len(by_name) == len(facts["trials"])
    chosen = by_name[facts["chosen"]]
    good = [t for t in facts["trials"] if max(t["error"].values()) <= 1e-4]
    assert chosen["bytes"] == min(t["bytes"] for t in good)
    assert {"dense", "lowrank", "quant", "topk"} == {t["codec"] for t in facts["trials"]}
    assert set(chosen["error"]) == {"1", "8"}
    drawing = ElementTree.parse(tmp_path / "plots" / "found.svg")
    text = " ".join("".join(node.itertext()) for node in drawing.iter() if node.tag.endswith("text"))
    for said in ("lowrank", "topk", "T = 1", "T = 8", "bytes a row", "KL(teacher ‖ decoded), nats"):
        assert said in text, said


def test_the_table_says_the_same(recipe: Path, tmp_path: Path) -> None:
    words = ("fidelity", recipe, *TOPK, "--rows", 60, "--max-bytes", 20)
    facts = json.loads(kd(tmp_path, *words, "--json").out)
    done = kd(tmp_path, *words, "--out", tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(">")] == [[">*", "topk"]]
    assert sum(line[1:2] == "*" for line in lines) == sum(t["pareto"] for t in facts["trials"]) > 0
    for trial in facts["trials"]:
        assert any(f" {trial['name']} " in line and f"{trial['error']['2']:.2e}" in line for line in lines), trial
    assert f"chosen: {facts['chosen']}" in done.out
    assert '  codec = "topk"' in lines
    assert (tmp_path / "fidelity.svg").read_bytes().startswith(b"<?xml")


def test_a_budget_that_nothing_meets(recipe: Path, tmp_path: Path) -> None:
    done = kd(tmp_path, "fidelity", recipe, *TOPK, "--rows", 60, "--max-kl", "1e-9", "--max-bytes", 12)
    assert done.code == 64
    assert "KL T=1" in done.out, "what was measured is shown all the same"
    last = done.err.splitlines()[-1]
    assert last.startswith("kdcache: fields.logits: no codec keeps KL(teacher ‖ decoded) at or below 1e-09 nats")
    assert "nearest is topk" in last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--field", "features"], ["--field features: the teacher gives"]),
        (["--out", "x.pdf"], [".svg or .png"]),
        (["--at-temperature", "0"], ["--at-temperature"]),
        (["--at-temperature", "1e5"], ["--at-temperature", "1000"]),
        (["--at-temperature", "nan"], ["--at-temperature", "finite"]),
        (["--max-kl", "inf"], ["--max-kl", "finite"]),
        (["--set", "teacher.fit={epochs=1}"], ["trains its teacher", "--weights FILE"]),
        ([], ["no [teacher]"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_measured(
    recipe: Path, words: list[str], said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from kdcache_cli import main

    if not words:
        recipe = tmp_path / "bare.toml"
        recipe.write_text('[source]\nkind = "digits"\n')
    monkeypatch.setattr(sys, "argv", ["kdcache", "fidelity", str(recipe), *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    one_error_line(Done(int(str(ended.value.code)), out, err), 64, *said)


def test_a_budget_from_plan_to_info(recipe: Path, tmp_path: Path) -> None:
    budget = ("--set", 'fields.logits={budget={max_kl=0.01},codec="topk"}', "--set", "teacher.batch_size=50")
    out = ("--out", tmp_path / "store")
    plan = json.loads(kd(tmp_path, "dump", recipe, *budget, *out, "--plan-only", "--json").out)
    why = plan["budget"]["logits"]["why"]
    assert "a KL of at most 0.01 nats at T = 1, 2, 4" in why
    assert plan["bytes"] == plan["rows"] * plan["bytes_per_row"]
    assert plan["hours"] == pytest.approx(plan["seconds"] / 3600, abs=1e-4)
    # 4 steps of 32 rows of 200: 0.64 of a pass for a student, so two students before the dump is the cheaper one.
    assert plan["teacher_passes_per_student"] == 0.64
    assert plan["paid_for_after_students"] == 2
    text = kd(tmp_path, "dump", recipe, *budget, *out, "--plan-only").out
    for said in (why, "MB/s", " h)", "the dump has paid for itself after 2 students"):
        assert said in text
    assert not (tmp_path / "store").exists()
    done = kd(tmp_path, "dump", recipe, *budget, *out)
    assert done.code == 0, done.err
    assert why in done.out
    assert why in kd(tmp_path, "info", tmp_path / "store").out
    facts = json.loads(kd(tmp_path, "info", tmp_path / "store", "--json").out)
    assert facts["budget"]["logits"]["asked"]["codec"] == "topk"
    assert set(facts["facts"]["fidelity"]["logits"]["log_z_error"]) > {"1", "20"}


def test_estimates_are_shown_as_what_they_are(recipe: Path, tmp_path: Path) -> None:
    done = kd(tmp_path, "dump", recipe, "--set", 'fields.logits={codec="sampled",draws=9}', "--out", tmp_path / "store")
    assert done.code == 0, done.err
    assert "squared error of the estimate" in done.out
    assert "squared error of the estimate" in kd(tmp_path, "info", tmp_path / "store").out
