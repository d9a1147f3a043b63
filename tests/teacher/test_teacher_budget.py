"""Codecs chosen by what they may cost: what is tried, what is chosen, what the plan says of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_recipes import MLP, TOPK, write_recipe

from kdcache.codecs import CODECS
from kdcache.config import BudgetConfig
from kdcache.errors import StoreMismatch, UsageError
from kdcache.recipe_file import load_recipe
from kdcache.store import describe, open_store, read_plan
from kdcache.teacher import budget, dump, estimate
from kdcache.teacher.budget import Measured, choose
from kdcache.teacher.trials import Trial, attempt, candidates, pareto, refine, sample_of, try_codecs

LOGITS = torch.randn(1200, 12, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    12, 40, generator=torch.Generator().manual_seed(1)
)
KEYS = torch.arange(1200) * 7


def trial(size: int, kl: float, kind: str = "kl", codec: str = "lowrank") -> Trial:
    return Trial(codec, {"bytes": size}, {"bytes": size}, size, kind, {"1": kl / 2, "2": kl}, {}, {})


trials = st.lists(st.builds(trial, st.integers(1, 20), st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0])), min_size=1)


@settings(max_examples=100, deadline=None)
@given(found=trials, max_kl=st.sampled_from([None, 0.001, 0.2, 2.0]), max_bytes=st.none() | st.integers(1, 20))
def test_the_choice_is_the_best_of_what_is_allowed(
    found: list[Trial], max_kl: float | None, max_bytes: int | None
) -> None:
    if max_kl is None and max_bytes is None:
        return
    allowed = [t for t in found if t.bytes <= (max_bytes or 99) and t.error["2"] <= (9.0 if max_kl is None else max_kl)]
    asked = BudgetConfig(max_kl=max_kl, max_bytes=max_bytes)
    if not allowed:
        with pytest.raises(UsageError, match=r"fields\.logits: no codec"):
            choose(Measured(found, 1, 1), asked, "logits")
        return
    best = choose(Measured(found, 1, 1), asked, "logits")
    assert best in allowed
    key = (lambda t: (t.error["2"], t.bytes)) if max_kl is None else (lambda t: (t.bytes, t.error["2"]))
    assert key(best) == min(map(key, allowed))


@settings(max_examples=100, deadline=None)
@given(found=trials)
def test_the_front_is_what_nothing_beats(found: list[Trial]) -> None:
    front = pareto(found)
    assert front == sorted(front, key=lambda t: t.bytes)
    for one in found:
        beaten = [t for t in found if t.bytes <= one.bytes and t.worst <= one.worst and (t.bytes, t.worst) != (one.bytes, one.worst)]  # fmt: skip  # noqa: E501
        assert (one in front) == (not beaten)


def test_a_budget_that_nothing_meets_says_what_comes_nearest() -> None:
    found = Measured([trial(8, 0.5), trial(16, 0.1), trial(64, 0.01)], 1, 1)

    def said(**bounds: Any) -> str:
        with pytest.raises(UsageError) as error:
            choose(found, BudgetConfig(**bounds), "logits")
        return str(error.value)

    both = said(max_kl=0.05, max_bytes=20)
    assert "at or below 0.05 nats within 20 bytes a row" in both
    assert "nearest is lowrank bytes 16 with 0.1 nats at T = 2 in 16 bytes" in both
    assert "lowrank bytes 64 would meet it in 64 bytes: raise max_kl or max_bytes" in both
    assert "nearest is lowrank bytes 64 with 0.01 nats at T = 2 in 64 bytes" in said(max_kl=1e-9)
    assert "the smallest is lowrank bytes 8 with 8 bytes: raise max_bytes" in said(max_bytes=4)
    estimates = Measured([trial(8, 0.5, "squared_error", "sampled")], 1, 1)
    with pytest.raises(UsageError, match="estimate at random"):
        choose(estimates, BudgetConfig(max_kl=1.0), "logits")
    assert choose(estimates, BudgetConfig(max_bytes=8), "logits").codec == "sampled"


def test_what_is_tried() -> None:
    def names(*asked: Any) -> set[str]:
        return {name for name, _ in candidates(*asked)}

    assert names(100, None, {}, None) == {"dense", "quant", "lowrank", "topk"}
    assert names(100, "topk", {}, None) == {"topk"}
    assert names(100, None, {"k": 9}, None) == {"topk"}
    assert candidates(100, "topk", {"k": 9, "dtype": "float16"}, None) == [("topk", {"k": 9, "dtype": "float16"})]
    assert ("lowrank", {"bytes": 37}) in candidates(100, None, {}, 37)
    assert "lowrank" not in names(32000, None, {}, None)
    assert "lowrank" in names(32000, "lowrank", {}, None)
    for codec in ("sampled", "threshold"):
        assert names(100, codec, {}, None) == {codec}
    assert not candidates(100, "topk", {"draws": 5}, None)
    assert set(CODECS) == {"dense", "quant", "lowrank", "topk", "sampled", "threshold"}, "a codec to be tried?"


def test_every_candidate_is_measured_on_rows_apart() -> None:
    sample = sample_of(LOGITS[:400], KEYS[:400])
    assert torch.equal(torch.cat([sample.fitted, sample.held_out]), LOGITS[:400])
    assert torch.equal(sample.keys, KEYS[300:400])
    told: list[tuple[int, int]] = []
    some = [(codec, keys) for codec, keys in candidates(40, None, {}, None) if keys.get("bytes", 12) in (12, 24)]
    found = try_codecs(some, sample, (1.0, 4.0), lambda done, total: told.append((done, total)))
    assert told[-1] == (len(told), len(told))
    for one in found:
        assert set(one.error) == set(one.cosine) == set(one.norm_ratio) == {"1", "4"}
    by_name = {one.name: one for one in found}
    assert by_name["dense dtype float32"].error == {"1": 0.0, "4": 0.0}
    assert by_name["dense dtype float32"].bytes == 160
    assert by_name["lowrank bytes 24"].worst < by_name["lowrank bytes 12"].worst
    assert by_name["topk k 16"].cosine["4"] > by_name["topk k 4"].cosine["4"]
    assert attempt("lowrank", {"bytes": 24}, sample, (1.0, 4.0)) == by_name["lowrank bytes 24"], "the same again"
    with pytest.raises(UsageError, match="no codec can be tried"):
        try_codecs([("lowrank", {"bytes": 12})], sample_of(LOGITS[:20], KEYS[:20]), (1.0,))
    with pytest.raises(UsageError, match="has 3 rows"):
        sample_of(LOGITS[:3], KEYS[:3])


def test_estimates_are_judged_at_their_own_temperature() -> None:
    sample = sample_of(LOGITS[:64], KEYS[:64])
    few, many = (attempt("sampled", {"draws": draws, "temperature": 2.0}, sample, (1.0, 4.0)) for draws in (10, 1000))
    assert few.kind == "squared_error"
    assert list(few.error) == list(few.cosine) == ["2"]
    # E|p̂ - p|² = (1 - |p|²) / N: a hundred times the draws, a hundredth of the error; 16 rows, so within a factor 2.
    assert 50 < few.error["2"] / many.error["2"] < 200


def test_sizes_between_those_on_the_ladder_are_found() -> None:
    asked: list[int] = []

    def run(codec: str, keys: dict[str, Any]) -> Trial:
        asked.append(keys["bytes"])
        return trial(keys["bytes"], 1 / keys["bytes"])

    found = refine([trial(8, 1 / 8), trial(32, 1 / 32), trial(16, 1 / 16)], lambda t: t.worst <= 1 / 21, run)
    assert min(t.bytes for t in found if t.worst <= 1 / 21) == 21
    assert asked == [24, 20, 22, 21]
    assert refine([trial(8, 1.0)], lambda t: False, run) == []


BUDGET = "[fields.logits]\nbudget = { max_kl = 1e-3, at_temperature = [1, 4] }\n"
QUICK = f'{BUDGET}codec = "dense"\n'


def test_a_store_says_what_was_chosen_and_why(weights: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(weights, teacher=MLP, fields=BUDGET, name="budget"))
    result = dump(recipe, tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        choice, field = store.plan.budget["logits"], store.fields["logits"]
        assert store.manifest.facts["fidelity"]["logits"]["kl"]["1"] < 2e-3
        assert field.width < 20, "less than float16"
    assert result.budget == {"logits": choice}
    assert choice["asked"] == {"max_kl": 1e-3, "at_temperature": [1.0, 4.0]}
    assert set(choice["measured"]["kl"]) == {"1", "4"}
    assert max(choice["measured"]["kl"].values()) <= 1e-3
    assert choice["measured"]["bytes_per_row"] == field.width
    assert (choice["measured"]["rows_fitted"], choice["measured"]["rows_held_out"]) == (150, 50)
    assert choice["why"].startswith(field.codec)
    assert "the smallest of" in choice["why"]
    assert describe(tmp_path / "store")["budget"] == {"logits": choice}
    assert choice["why"] in (tmp_path / "store" / "README.md").read_text()


def test_the_same_choice_is_made_again(weights: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(weights, teacher=MLP, fields=QUICK, name="again"))
    dump(recipe, tmp_path / "store")
    assert estimate(recipe).plan == read_plan(tmp_path / "store")


def test_a_choice_on_disk_is_taken_over_without_another_pilot(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(weights, teacher=MLP, fields=QUICK, name="adopt"))
    first = dump(recipe, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    (tmp_path / "store" / "units" / "000002.json").unlink()

    def refuse(*words: Any) -> None:
        raise AssertionError("the pilot ran again")

    monkeypatch.setattr(budget, "measure", refuse)
    assert dump(recipe, tmp_path / "store").manifest.digest == first.manifest.digest
    other = QUICK.replace("1e-3", "1e-2")
    for fields, said in ((other, "max_kl"), (TOPK, "fields"), (BUDGET, "codec")):
        changed = load_recipe(write_recipe(weights, teacher=MLP, fields=fields, name="adopt-other"))
        with pytest.raises(StoreMismatch, match=said):
            dump(changed, tmp_path / "store")
    plain = load_recipe(write_recipe(weights, teacher=MLP, fields=TOPK, name="adopt-plain"))
    dump(plain, tmp_path / "plain")
    with pytest.raises(StoreMismatch, match=r"fields.logits.budget is not given there"):
        dump(recipe, tmp_path / "plain")


def test_a_plan_whose_budget_is_not_what_kdcache_writes_is_refused(weights: Path, tmp_path: Path) -> None:
    from kdcache.errors import StoreDamaged
    from kdcache.store.plan_file import plan_from_json

    dump(load_recipe(write_recipe(weights, teacher=MLP, fields=QUICK, name="hostile")), tmp_path / "store")
    plan = json.loads((tmp_path / "store" / "plan.json").read_bytes())
    sound = plan["budget"]["logits"]
    assert plan_from_json(plan, "here").budget == plan["budget"]
    for strange in (7, {"other": sound}, {"logits": 7}, {"logits": {**sound, "why": 7}}, {"logits": {"asked": {}}}):
        with pytest.raises(StoreDamaged, match="budget"):
            plan_from_json({**plan, "budget": strange}, "here")


def test_what_has_no_budget(weights: Path, tmp_path: Path) -> None:
    tapped = f'{MLP}\ntaps = {{ "features.hidden" = "layers.0" }}'
    fields = '[fields."features.hidden"]\nbudget = { max_bytes = 9 }\n'
    with pytest.raises(UsageError, match=r"fields\.features\.hidden: a budget is for logits"):
        dump(load_recipe(write_recipe(weights, teacher=tapped, fields=fields, name="map")), tmp_path / "store")
    fields = "[fields.logits]\nbudget = { max_kl = 1e-9, max_bytes = 10 }\n"
    with pytest.raises(UsageError, match=r"no codec keeps KL.* at or below 1e-09 nats within 10 bytes"):
        dump(load_recipe(write_recipe(weights, teacher=MLP, fields=fields, name="tight")), tmp_path / "store")
    assert not (tmp_path / "store").exists()
