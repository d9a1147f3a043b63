"""Teachers, weights and disks that fail: what is said, with which samples, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command import Done, forked, one_error_line
from teacher_recipes import (
    CNN,
    MLP,
    NUMBERED,
    ROWS,
    Marked,
    Numbered,
    files_of,
    find_modules,
    full_disk,
    write_recipe,
    write_weights,
)

from kdcache.errors import CheckpointError, TeacherError, UsageError
from kdcache.recipe_file import load_recipe
from kdcache.sources import open_source
from kdcache.store import describe, open_store
from kdcache.teacher import dump, estimate


def marked(folder: Path, habits: str = "", teacher: str = "", **tables: str) -> Path:
    """A recipe for `Numbered` samples and the network that looks for marks."""
    text = f'model = "teacher_recipes:marked"\nargs = {{ {habits} }}\n{teacher}'
    return write_recipe(folder, source=NUMBERED, teacher=text, **tables)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Two samples of one batch in the third unit."""
    folder = tmp_path_factory.mktemp("late")
    dump(load_recipe(marked(folder)), folder / "whole")
    with open_store(folder / "whole") as store:
        return sorted(store.read_column("id", 130, 132).tolist())


def test_nan_names_the_samples_and_loses_nothing(tmp_path: Path, late: list[int]) -> None:
    recipe = load_recipe(marked(tmp_path, f"nan_for = [{late[0] + 1000}, {late[1] + 1000}]"))
    with pytest.raises(TeacherError, match="NaN or infinity for 2 samples") as error:
        dump(recipe, tmp_path / "store")
    assert all(str(sample) in str(error.value) for sample in late), str(error.value)
    facts = describe(tmp_path / "store")
    assert (facts["complete"], facts["units_committed"]) == (False, 2), "the units before are kept"
    before = files_of(tmp_path / "store")
    with pytest.raises(TeacherError):
        dump(recipe, tmp_path / "store")
    units = [name for name in before if name.startswith("units/")]
    assert {name: files_of(tmp_path / "store")[name] for name in units} == {name: before[name] for name in units}


def test_nan_in_the_pilot_the_plan_or_the_estimate_names_samples_too(tmp_path: Path, late: list[int]) -> None:
    everything = ", ".join(str(1000 + i) for i in range(ROWS))
    with pytest.raises(TeacherError, match=r"ids \[0, 1\]"):
        dump(load_recipe(marked(tmp_path, f"nan_for = [{everything}]")), tmp_path / "a")
    lowrank = '[fields.logits]\ncodec = "lowrank"\nbytes = 5'
    recipe = load_recipe(marked(tmp_path, f"nan_for = [{late[0] + 1000}]", fields=lowrank))
    with pytest.raises(TeacherError, match=rf"ids \[{late[0]}\]"):
        dump(recipe, tmp_path / "b")
    with pytest.raises(TeacherError, match=r"NaN or infinity for .* ids"):
        estimate(load_recipe(marked(tmp_path, f"nan_for = [{', '.join(str(1000 + i) for i in range(2, ROWS))}]")))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_sample_that_makes_the_teacher_raise_is_found(tmp_path: Path, late: list[int]) -> None:
    recipe = load_recipe(marked(tmp_path, f"raise_for = [{late[1] + 1000}]"))
    with pytest.raises(TeacherError, match=rf"raised RuntimeError for sample {late[1]}: cannot digest this"):
        dump(recipe, tmp_path / "store")
    assert describe(tmp_path / "store")["units_committed"] == 2


def test_nan_in_bf16_is_tried_again_in_fp32(tmp_path: Path) -> None:
    fragile = load_recipe(marked(tmp_path, "nan_below_fp32 = true", 'precision = "bf16"'))
    dump(fragile, tmp_path / "fragile")
    dump(load_recipe(marked(tmp_path)), tmp_path / "fp32")
    dump(load_recipe(marked(tmp_path, "", 'precision = "bf16"')), tmp_path / "bf16")
    values = {}
    for name in ("fragile", "fp32", "bf16"):
        with open_store(tmp_path / name) as store:
            values[name] = store.read_column("logits")
    np.testing.assert_array_equal(values["fragile"], values["fp32"])
    assert not np.array_equal(values["bf16"], values["fp32"]), "bf16 is used where it gives numbers"


@pytest.mark.parametrize("most", [1, 5, 23])
def test_a_batch_that_does_not_fit_in_memory_is_halved(tmp_path: Path, most: int) -> None:
    # A network must at least take the two samples that its shapes are checked with, so 1 begins after that.
    dump(load_recipe(marked(tmp_path)), tmp_path / "whole")
    habits = f"most = {max(most, 2)}"
    dump(load_recipe(marked(tmp_path, habits)), tmp_path / "halved")
    with open_store(tmp_path / "whole") as a, open_store(tmp_path / "halved") as b:
        np.testing.assert_array_equal(a.read_column("id"), b.read_column("id"))
        np.testing.assert_allclose(a.read_column("logits").astype(np.float32), b.read_column("logits"), atol=2e-3)


def test_memory_that_is_not_enough_for_one_sample(tmp_path: Path) -> None:
    from kdcache.config import TeacherConfig
    from kdcache.models import InputSpec
    from kdcache.teacher.batch import run_batch
    from kdcache.teacher.frozen import FrozenTeacher

    teacher = FrozenTeacher(Marked(9, 10, most=0), InputSpec(), TeacherConfig(model="x:y"), 10)
    inputs = torch.from_numpy(Numbered(4).inputs)
    with pytest.raises(TeacherError, match="raised OutOfMemoryError for sample 40: a batch of 1 does not fit"):
        run_batch(teacher, inputs, np.arange(40, 44))


def test_logits_too_large_for_the_fields_dtype(tmp_path: Path, weights: Path) -> None:
    tensors = safetensors.torch.load_file(weights / "mlp.safetensors")
    safetensors.torch.save_file({k: v * 1000 for k, v in tensors.items()}, tmp_path / "mlp.safetensors")
    recipe = load_recipe(write_recipe(tmp_path, teacher=MLP))
    with pytest.raises(UsageError, match="too large for float16"):
        dump(recipe, tmp_path / "store")


# weights


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    for teacher in (
        MLP.replace("[16]", "[17]"),
        MLP.replace("mlp.safe", "cnn.safe"),
        CNN.replace("hidden = 8", "hidden = 9"),
    ):
        recipe = load_recipe(write_recipe(weights, teacher=teacher, name="shape"))
        with pytest.raises(UsageError, match=r"safetensors: its weights are not those of this"):
            dump(recipe, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path, outputs=11)
    with pytest.raises(UsageError, match=r"mlp.safetensors: the teacher gives 11 outputs, the source has 10 classes"):
        dump(load_recipe(write_recipe(tmp_path, teacher=MLP)), tmp_path / "store")
    tensors = safetensors.torch.load_file(tmp_path / "mlp.safetensors")  # the same without a word of its origin
    safetensors.torch.save_file(tensors, tmp_path / "mlp.safetensors")
    with pytest.raises(UsageError, match=r"head.weight is \[11, 16\] in the file and \[10, 16\] in the network"):
        dump(load_recipe(write_recipe(tmp_path, teacher=MLP)), tmp_path / "store")


@pytest.mark.parametrize("content", [None, b"", b"no safetensors", b"\xff" * 64])
def test_weights_that_are_no_weights(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mlp.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"mlp.safetensors: (not a safetensors file|there is no such)"):
        dump(load_recipe(write_recipe(tmp_path, teacher=MLP)), tmp_path / "store")


def test_a_teacher_that_is_still_to_be_fitted(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, teacher='model = "zoo:mlp"\nfit = { steps = 3 }'))
    with pytest.raises(UsageError, match=r"use `kdcache run RECIPE --out DIR`, or give `kdcache dump --weights FILE`"):
        dump(recipe, tmp_path / "store")


def test_weights_given_beside_the_recipe_win(weights: Path, tmp_path: Path) -> None:
    bare = load_recipe(write_recipe(tmp_path, teacher='model = "zoo:mlp"\nargs = { hidden = [16] }'))
    dump(bare, tmp_path / "given", weights=weights / "mlp.safetensors")
    dump(load_recipe(write_recipe(weights, teacher=MLP, name="named")), tmp_path / "named")
    assert files_of(tmp_path / "given") == files_of(tmp_path / "named"), "where weights lie is no part of a store"


def test_the_scaling_comes_from_the_weights_the_recipe_or_the_rows(weights: Path, tmp_path: Path) -> None:
    bare = safetensors.torch.load_file(weights / "mlp.safetensors")
    safetensors.torch.save_file(bare, tmp_path / "mlp.safetensors")
    said = {
        "own": (weights, ""),
        "recipe": (tmp_path, "[teacher.input]\nmean = [5.0]\nstd = [6.0]"),
        "rows": (tmp_path, ""),
    }
    found = {}
    for name, (folder, table) in said.items():
        dump(load_recipe(write_recipe(folder, teacher=MLP, fields=table, name=name)), tmp_path / name)
        with open_store(tmp_path / name) as store:
            found[name] = store.read_column("logits")
            spec = store.plan.teacher["input"] if store.plan.teacher else None
            if name == "rows":
                assert spec == store.plan.input_statistics
                values = open_source(load_recipe(folder / "rows.toml").source)
                pixels = values.read(values.ids())["input"].astype(np.float64)
                assert spec == {"mean": [pytest.approx(pixels.mean())], "std": [pytest.approx(pixels.std())]}
    np.testing.assert_array_equal(found["own"], found["recipe"])
    assert not np.array_equal(found["own"], found["rows"])


def test_taps_that_are_not_there(weights: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(weights, teacher=f'{MLP}\ntaps = {{ "features.a" = "layer.0" }}', name="tap"))
    with pytest.raises(UsageError, match=r"features.a.*no such module.*layers.0"):
        dump(recipe, tmp_path / "store")


def test_a_codec_that_does_not_fit_names_its_field(weights: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(weights, teacher=MLP, fields='[fields.logits]\ncodec = "topk"\nk = 4000', name="k")
    )
    with pytest.raises(UsageError, match=r"fields.logits: topk: k = 4000 is more than the 10 classes"):
        dump(recipe, tmp_path / "store")
    assert not (tmp_path / "store").exists()


# through the command line


def command(folder: Path, *words: object, **options: object) -> Done:
    return forked(folder / "said", "dump", *words, **options)


def test_exit_codes(tmp_path: Path, late: list[int]) -> None:
    recipe = marked(tmp_path, f"nan_for = [{late[0] + 1000}]")
    done = command(tmp_path, recipe, "--out", tmp_path / "store", before=find_modules)
    one_error_line(done, 65, "NaN or infinity for 1 samples", str(late[0]))
    recipe = marked(tmp_path, f"raise_for = [{late[0] + 1000}]")
    done = command(tmp_path, recipe, "--out", tmp_path / "other", before=find_modules)
    one_error_line(done, 65, f"sample {late[0]}")


def test_a_full_disk_is_said_and_gone_on_from(weights: Path, tmp_path: Path) -> None:
    recipe = write_recipe(weights, teacher=MLP, name="full")
    words = (recipe, "--out", tmp_path / "store")
    one_error_line(command(tmp_path, *words, before=full_disk), 74, str(tmp_path / "store"), "cannot write")
    assert not list((tmp_path / "store" / "units").iterdir())
    assert command(tmp_path, *words).code == 0
    dump(load_recipe(recipe), tmp_path / "whole")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_the_weights_say_how_many_classes_an_unlabelled_source_has(tmp_path: Path) -> None:
    from kdcache.arrays import Array
    from kdcache.config import TeacherConfig
    from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
    from kdcache.teacher.frozen import load_teacher

    config, array = TeacherConfig(model="zoo:mlp"), Array("float32", (9,))
    with pytest.raises(UsageError, match="neither the source nor the weights say how many classes"):
        load_teacher(config, {"input": array}, None, InputSpec())
    model = build_model("zoo:mlp", {}, input=array, outputs=7)
    save_weights(tmp_path / "w.safetensors", model, WeightsInfo("zoo:mlp", {}, array, 7))
    assert load_teacher(config, {"input": array}, None, InputSpec(), tmp_path / "w.safetensors").outputs == 7
