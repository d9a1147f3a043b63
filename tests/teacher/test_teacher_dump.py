"""What a dump writes: the teacher's outputs, encoded, in the plan's order, and nothing of the machine."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_recipes import CNN, MLP, ROWS, TOPK, batches, files_of, write_recipe
from torch import Tensor

from kdcache.codecs import CODECS
from kdcache.errors import StoreMismatch
from kdcache.models import load_model
from kdcache.recipe_file import load_recipe
from kdcache.sources import open_source
from kdcache.store import open_store, verify
from kdcache.taps import tap_outputs
from kdcache.teacher import dump, estimate

DENSE = '[fields.logits]\ncodec = "dense"\n'
FIELDS = {
    "default": (MLP, ""),
    "dense": (MLP, DENSE),
    "bfloat16": (MLP, DENSE + 'dtype = "bfloat16"'),
    "topk": (MLP, TOPK),
    "every class": (MLP, TOPK.replace("3", "10")),
    "lowrank": (MLP, '[fields.logits]\ncodec = "lowrank"\nbytes = 5'),
    "tap": (f'{MLP}\ntaps = {{ "features.hidden" = "layers.0" }}', ""),
    "maps": (f'{CNN}\ntaps = {{ "features.first" = "layers.0", "features.hidden" = "hidden" }}', f"""{TOPK}
[fields."features.first"]
dtype = "bfloat16"
[fields."features.hidden"]
dtype = "float32"
"""),
    "pooled": (f'{CNN}\npool = "avg"\ntaps = {{ "features.first" = "layers.0", "features.last" = "layers.1" }}', ""),
}  # fmt: skip


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
def test_without_a_teacher_a_store_holds_the_source_in_the_plans_order(tmp_path: Path, container: str) -> None:
    recipe = load_recipe(write_recipe(tmp_path, store=f'format = "{container}"'))
    result = dump(recipe, tmp_path / "store")
    source = open_source(recipe.source)
    with open_store(tmp_path / "store") as store:
        ids = source.ids()[store.plan.permutation()]
        assert list(store.columns) == ["id", "input", "label"]
        np.testing.assert_array_equal(store.read_column("id"), ids)
        for name, values in source.read(ids).items():
            np.testing.assert_array_equal(store.read_column(name), values)
        assert (store.read_column("label") >= 0).sum() == 50
        assert store.plan.teacher is None
        assert store.manifest.facts == {}
    assert (result.rows, result.manifest.rows) == (ROWS, ROWS)
    assert not np.array_equal(ids, np.sort(ids)), "shuffled on write"


def test_the_order_of_the_source_may_be_kept(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, store='order = "source"'))
    dump(recipe, tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        np.testing.assert_array_equal(store.read_column("id"), open_source(recipe.source).ids())


@pytest.mark.parametrize("case", FIELDS)
def test_stored_values_are_those_of_the_teacher(weights: Path, tmp_path: Path, case: str) -> None:
    teacher, fields = FIELDS[case]
    recipe = load_recipe(write_recipe(weights, teacher=teacher, fields=fields, name=case.replace(" ", "-")))
    dump(recipe, tmp_path / "store")
    assert recipe.teacher is not None
    assert recipe.teacher.weights is not None
    model, info = load_model(recipe.teacher.weights)
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    source = open_source(recipe.source)
    with open_store(tmp_path / "store") as store:
        names = ["logits", *recipe.teacher.taps]
        assert list(store.fields) == ["id", "input", "label", *names]
        tables = {n: {k: torch.from_numpy(v) for k, v in store.table(n).items()} for n in names}
        for first, last, ids in batches(recipe, store):
            inputs = source.read(ids)["input"]
            np.testing.assert_array_equal(store.read_column("input", first, last), inputs)
            np.testing.assert_array_equal(store.read_column("id", first, last), ids)
            with torch.inference_mode(), tap_outputs(model, recipe.teacher.taps) as tapped:
                outputs: dict[str, Tensor] = {"logits": model(info.input_spec.apply(torch.from_numpy(inputs)))}
            for name in recipe.teacher.taps:
                pooled = recipe.teacher.pool == "avg" and tapped[name].dim() == 4
                outputs[name] = tapped[name].mean((2, 3)) if pooled else tapped[name]
            for name in names:
                field = store.fields[name]
                assert field.array.shape == outputs[name].shape[1:]
                encoded = CODECS[field.codec].encode(outputs[name], field.configuration, tables[name])
                for suffix, expected in encoded.items():
                    raw = expected.view(torch.uint16) if expected.dtype == torch.bfloat16 else expected
                    found = store.read_column(field.column(suffix), first, last)
                    np.testing.assert_array_equal(found, raw.numpy())
    assert verify(tmp_path / "store", deep=True)["strange_files"] == []


@pytest.mark.parametrize("case", ["dense", "bfloat16", "topk", "lowrank"])
def test_fidelity_is_a_fact_of_unit_0_alone(weights: Path, tmp_path: Path, case: str) -> None:
    teacher, fields = FIELDS[case]
    recipe = load_recipe(write_recipe(weights, teacher=teacher, fields=fields, name=case))
    dump(recipe, tmp_path / "store")
    model, info = load_model(weights / "mlp.safetensors")
    with open_store(tmp_path / "store") as store, torch.inference_mode():
        assert ["fidelity" in unit.facts for unit in store.manifest.units] == [True, False, False, False]
        assert [unit.facts["error"]["logits"]["rows"] for unit in store.manifest.units] == [64, 64, 64, 8]
        facts = store.manifest.facts["fidelity"]["logits"]
        field = store.fields["logits"]
        exact = model.eval()(info.input_spec.apply(torch.from_numpy(store.read_column("input", 0, 64)))).double()
        stored = {s: torch.from_numpy(store.read_column(field.column(s), 0, 64)) for s in field.columns}
        tables = {k: torch.from_numpy(v) for k, v in store.table("logits").items()}
        decoded = CODECS[field.codec].decode(stored, field.array, field.configuration, tables)
        for t in (1, 2, 4):
            p = torch.softmax(exact / t, 1)
            if isinstance(decoded, Tensor):
                log_q = torch.log_softmax(decoded.double() / t, 1)
            else:  # the tail's mass, evenly over its classes
                kept, tail = decoded.log_probs(t)
                log_q = (tail.double() - np.log(10 - 3))[:, None].repeat(1, 10)
                log_q = log_q.scatter(1, decoded.indices, kept.double())
            expected = float((p * (p.log() - log_q)).sum(1).mean())
            assert facts["kl"][str(t)] == pytest.approx(expected, rel=1e-4, abs=1e-7)
            if t == 2:
                error = store.manifest.units[0].facts["error"]["logits"]["mean"]
                assert error == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert facts["rows"] == 64
        assert facts["bytes_per_row"] == field.width
    if case == "topk":
        assert facts["kl"]["1"] > 1e-4, "three of ten classes lose something"
        true = torch.logsumexp(torch.log_softmax(exact, 1) / 2, 1)
        kept, _ = decoded.log_probs(2)
        errors = (decoded.log_p[:, 0].double() / 2 - kept[:, 0].double() - true).abs()
        assert facts["log_z_error_mean"]["2"] == pytest.approx(float(errors.mean()), rel=1e-2)
        assert (
            facts["log_z_error"]["2"] <= facts["log_z_error_max"]["2"] == pytest.approx(float(errors.max()), rel=1e-2)
        )
        assert set(facts["log_z_error"]) == {"1", "1.5", "2", "3", "4", "6", "8", "12", "16", "20"}
    else:
        assert "log_z_error" not in facts


def test_the_same_dump_twice_gives_the_same_bytes_and_nothing_of_the_machine(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(weights, teacher=MLP, fields=TOPK, name="twice")
    monkeypatch.chdir(tmp_path)
    dump(load_recipe(recipe), Path("one"))
    monkeypatch.setenv("TZ", "Pacific/Apia")
    dump(load_recipe(recipe), tmp_path / "elsewhere" / "two")
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "elsewhere" / "two")
    assert one == two
    machine = [socket.gethostname(), str(tmp_path), str(weights), "twice.toml", str(Path.home())]
    for name, data in one.items():
        for word in machine:
            assert word.encode() not in data, (name, word)
    for name in ("plan.json", "manifest.json", *(n for n in one if n.startswith("units/"))):
        text = one[name].decode()
        assert not any(word in text for word in (f'"{os.getpid()}"', f":{os.getpid()},", "time", "date", "user")), name


def test_a_finished_store_is_left_as_it_is(weights: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(weights, teacher=MLP, name="finished"))
    dump(recipe, tmp_path / "store")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file() and p.suffix != ".md"}
    again = dump(recipe, tmp_path / "store")
    assert again.rows == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_plan_alone_writes_nothing_and_counts_exactly(weights: Path, tmp_path: Path) -> None:
    for case in ("default", "topk", "lowrank", "maps"):
        teacher, fields = FIELDS[case]
        recipe = load_recipe(write_recipe(weights, teacher=teacher, fields=fields, name="plan-only"))
        before = sorted(weights.iterdir())
        found = estimate(recipe)
        assert sorted(weights.iterdir()) == before
        result = dump(recipe, tmp_path / case)
        with open_store(tmp_path / case) as store:
            rows = {name: sum(column.width for column in f.columns.values()) for name, f in store.fields.items()}
            assert found.field_bytes == rows
            read = sum(store.read_column(name).nbytes for name in store.columns)
            assert found.total_bytes == read
            assert result.manifest.data_bytes > read, "a shard has a header too"
            if not store.plan.tables:
                assert found.plan.digest == store.plan.digest
        assert found.samples_per_second > 0
        assert found.seconds == pytest.approx(ROWS / found.samples_per_second)


def test_progress_counts_every_row_and_byte(weights: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Watch:
        def begin(self, rows: int, done: int) -> None:
            seen.append(("begin", rows * 1000 + done))

        def advance(self, rows: int) -> None:
            seen.append(("rows", rows))

        def written(self, size: int) -> None:
            seen.append(("bytes", size))

    result = dump(load_recipe(write_recipe(weights, teacher=MLP, name="watch")), tmp_path / "s", progress=Watch())
    assert seen[0] == ("begin", ROWS * 1000)
    assert sum(n for what, n in seen if what == "rows") == ROWS
    assert sum(n for what, n in seen if what == "bytes") == result.manifest.data_bytes


# another plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"store": "seed = 1"}, "order.seed"), ({"store": 'format = "hdf5"'}, "container"),
        ({"fields": TOPK}, "fields"),
        ({"store": 'compression = "zstd"'}, "container.compression"),
        ({"teacher": MLP + '\nprecision = "bf16"'}, "precision"),
        ({"teacher": MLP + "\nbatch_size = 32"}, "batch_rows"),
        ({"teacher": CNN}, "teacher"), ({"source": '[source]\nkind = "digits"\nrows = 100'}, "source.fingerprint"),
        ({"source": f'[source]\nkind = "digits"\nrows = {ROWS}\nlabelled = 49'}, "source.fingerprint"),
    ],
)  # fmt: skip
def test_another_plan_is_refused(weights: Path, tmp_path: Path, change: dict[str, str], said: str) -> None:
    start = {"teacher": MLP, "fields": ""}
    dump(load_recipe(write_recipe(weights, **start, name="first")), tmp_path / "store")
    before = files_of(tmp_path / "store")
    if "batch_size" in change.get("teacher", ""):
        path = write_recipe(weights, **start, name="other")
        path.write_text(path.read_text().replace("batch_size = 24", "batch_size = 32"))
    else:
        path = write_recipe(weights, **{**start, **change}, name="other")
    with pytest.raises(StoreMismatch, match=said) as error:
        dump(load_recipe(path), tmp_path / "store")
    assert str(tmp_path / "store") in str(error.value)
    assert files_of(tmp_path / "store") == before


def test_another_plan_is_refused_before_the_teacher_runs_over_the_rows(tmp_path: Path) -> None:
    habits = 'model = "teacher_recipes:marked"\nargs = { nan_for = [1150] }'
    source = '[source]\nkind = "python"\nfactory = "teacher_recipes:Numbered"\n'
    dump(load_recipe(write_recipe(tmp_path, source=source)), tmp_path / "store")
    with pytest.raises(StoreMismatch, match="another plan"):
        dump(load_recipe(write_recipe(tmp_path, source=source, teacher=habits)), tmp_path / "store")


# --like


def test_a_second_teacher_is_aligned_with_the_first(weights: Path, tmp_path: Path) -> None:
    first = load_recipe(write_recipe(weights, teacher=MLP, name="first-like"))
    second = write_recipe(weights, teacher=CNN, store="seed = 9\nformat = 'hdf5'", name="second-like")
    second.write_text(second.read_text().replace("unit_rows = 64\nblock_rows = 16", "unit_rows = 96\nblock_rows = 8"))
    dump(first, tmp_path / "one")
    dump(load_recipe(second), tmp_path / "two", like=tmp_path / "one")
    dump(load_recipe(second), tmp_path / "alone")
    with open_store(tmp_path / "one") as a, open_store(tmp_path / "two") as b, open_store(tmp_path / "alone") as c:
        assert a.plan.alignment == b.plan.alignment != c.plan.alignment
        np.testing.assert_array_equal(a.read_column("id"), b.read_column("id"))
        np.testing.assert_array_equal(a.block_starts, b.block_starts)
        assert b.plan.container["format"] == "hdf5", "the layout on disk is its own"
        assert not np.array_equal(a.read_column("id"), c.read_column("id"))


def test_another_source_cannot_be_aligned(weights: Path, tmp_path: Path) -> None:
    dump(load_recipe(write_recipe(weights, name="inputs-like")), tmp_path / "one")
    other = load_recipe(write_recipe(weights, source='[source]\nkind = "digits"\nrows = 100', name="other-like"))
    with pytest.raises(StoreMismatch, match=r"holds 200 rows of digits .*, this recipe's source is 100 rows"):
        dump(other, tmp_path / "two", like=tmp_path / "one")
    assert not (tmp_path / "two").exists()
    with pytest.raises(Exception, match=r"holds no plan.json"):
        dump(other, tmp_path / "two", like=tmp_path)


def test_facts_are_plain_json(weights: Path, tmp_path: Path) -> None:
    dump(load_recipe(write_recipe(weights, teacher=MLP, fields=TOPK, name="json")), tmp_path / "store")
    for name in ("plan.json", "manifest.json"):
        text = (tmp_path / "store" / name).read_text()
        assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" == text
