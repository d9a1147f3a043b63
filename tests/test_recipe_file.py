"""From TOML text to a checked recipe: overrides, paths, near misses, inheritance, the grid."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.config import Recipe
from kdcache.errors import UsageError
from kdcache.recipe_file import data_root, load_recipe
from kdcache.recipe_students import Student, resolve_students

GOOD = """
name = "good"
[source]
kind = "idx"
images = "data/images.gz"
labels = "data/labels.gz"
labelled = 500
[eval_source]
kind = "cifar"
files = ["a.bin", "/b.bin"]
[store]
format = "parquet"
unit_rows = 2048
block_rows = 256
[teacher]
model = "zoo:cnn"
args = { channels = [32, 64], hidden = 64 }
fit = { epochs = 20, early_stopping = { patience = 3 } }
taps = { "features.hidden" = "hidden" }
[teacher.input]
mean = [128.0]
std = [64.0]
[fields.logits]
codec = "topk"
k = 4
[fields."features.hidden"]
dtype = "float16"
[student]
model = "zoo:mlp"
args = { hidden = [32] }
[[objective]]
name = "kd"
weight = 0.9
temperature = 2.0
[[objective]]
name = "ce"
weight = 0.1
[train]
epochs = 12
seeds = [0, 1, 2]
"""


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = GOOD, *overrides: str) -> Recipe:
    return load_recipe(write(folder, text), overrides)


def students(folder: Path, text: str, *overrides: str) -> dict[str, Student]:
    return resolve_students(load(folder, text, *overrides))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("name = ", "nmae = "), ("[source]", "[sorce]"), ("images", "image"), ("labelled", "labeled"),
        ("files", "file"), ("format", "formt"), ("unit_rows", "unit_row"), ("model", "modle"),
        ("epochs = 20", "epoch = 20"),
        ("patience", "patince"), ("mean", "maen"), ("codec", "codecs"), ("k = 4", "kk = 4"), ("dtype", "dtpye"),
        ("seeds", "seds"), ("[student]", "[studnet]"),
        ("fit = ", "fitt = "), ("taps", "tap"),
    ],
)  # fmt: skip
def test_a_typo_at_any_level_is_named_with_the_near_miss(tmp_path: Path, right: str, wrong: str) -> None:
    assert GOOD.count(right), right
    with pytest.raises(UsageError) as error:
        load(tmp_path, GOOD.replace(right, wrong, 1))
    said = str(error.value)
    assert "\n" not in said
    assert str(tmp_path / "recipe.toml") in said
    key = right.strip(' ="[]').split(" =")[0].split("\n")[-1]
    assert "did you mean" in said, said
    assert repr(key) in said, said


@pytest.mark.parametrize(
    ("table", "near"),
    [("[students.a]\nmodl = 'x'", "model"), ("[students.a.train]\nepoch = 3", "epochs")],
)  # fmt: skip
def test_a_typo_inside_a_students_own_tables(tmp_path: Path, table: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean .*{near!r}"):
        students(tmp_path, f"{GOOD}\n{table}\n")


def test_a_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'store.zzz'; known.*: block_rows, compression, format"):
        load(tmp_path, GOOD.replace("unit_rows = 2048", "zzz = 1"))


def test_a_wrong_value_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train.epochs: .*greater than 0 \(found -1\)"):
        load(tmp_path, GOOD, "train.epochs=-1")
    with pytest.raises(UsageError, match=r"recipe.toml: name: Field required|source: Field required"):
        load(tmp_path, "")
    with pytest.raises(UsageError, match=r"store: unit_rows = 100 must be a multiple of block_rows = 256"):
        load(tmp_path, GOOD, "store.unit_rows=100")


@pytest.mark.parametrize(
    "data", [b"\n[[[", b"\xff\xfe", b"a = 1\na = 2", b"a = " + b"[" * 5000, b"a = " + b"1" * 5000, b"\0"]
)
def test_what_is_no_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"recipe.toml: not a TOML file"):
        load_recipe(path)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(UsageError, match="the recipe cannot be read"):
            load_recipe(path)


# --set


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.epochs=5", lambda r: r.train.epochs == 5),
        (" train.epochs = 5 ", lambda r: r.train.epochs == 5),
        ("train.lr=1e-2", lambda r: r.train.lr == 0.01),
        ("train.seeds=[7, 8]", lambda r: r.train.seeds == (7, 8)),
        ("train.augment=['flip']", lambda r: r.train.augment == ("flip",)),
        ("train.optimizer=sgd", lambda r: r.train.optimizer == "sgd"),
        ("train.optimizer='sgd'", lambda r: r.train.optimizer == "sgd"),
        ("name=1e", lambda r: r.name == "1e"),
        ("objective.0.weight=0.5", lambda r: r.objective[0].weight == 0.5),
        ("objective.1.name=kd", lambda r: r.objective[1].name == "kd"),
        ("teacher.args.hidden=8", lambda r: r.teacher.args == {"channels": [32, 64], "hidden": 8}),
        ("teacher.args={ hidden = 8 }", lambda r: r.teacher.args == {"hidden": 8}),
        ("teacher.args.channels.1=8", lambda r: r.teacher.args["channels"] == [32, 8]),
        ('fields."features.hidden".dtype=bfloat16', lambda r: r.fields["features.hidden"].dtype == "bfloat16"),
        ("grid.'kd.weight'=[0.1, 0.5]", lambda r: r.grid == {"kd.weight": [0.1, 0.5]}),
        ("students.a.model=zoo:mlp", lambda r: r.students["a"].model == "zoo:mlp"),
        ("eval_source.files.0=c.bin", lambda r: r.eval_source.files[0].name == "c.bin"),
        ("name=x=y", None),
    ],
)  # fmt: skip
def test_overrides(tmp_path: Path, override: str, found: Any) -> None:
    if found is None:
        with pytest.raises(UsageError, match="name"):
            load(tmp_path, GOOD, override)
    else:
        assert found(load(tmp_path, GOOD, override))


def test_later_overrides_win_and_tables_are_made(tmp_path: Path) -> None:
    recipe = load(tmp_path, "", "source.kind=digits", "train.epochs=1", "train.epochs=2")
    assert recipe.source.kind == "digits"
    assert recipe.train.epochs == 2


@pytest.mark.parametrize("wrong", ["train.epochs", "=5", "", "objective.9.weight=1", "objective.x.weight=1",
                                   "name.first=1", "train.epochs.x=1", "train..epochs=1", "a b=1", "objective.0=kd",
                                   "[train]=1", "train.epochz=1"])  # fmt: skip
def test_an_override_in_a_wrong_place(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        load(tmp_path, GOOD, wrong)
    assert "\n" not in str(error.value)


# paths


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("fit = { epochs = 20, early_stopping = { patience = 3 } }", 'weights = "w.safetensors"')
    monkeypatch.chdir("/")
    recipe = load(tmp_path, text)
    assert recipe.source.images == tmp_path / "data/images.gz"
    assert recipe.source.labels == tmp_path / "data/labels.gz"
    assert recipe.eval_source is not None
    assert recipe.teacher is not None
    assert recipe.eval_source.files == (tmp_path / "a.bin", Path("/b.bin"))
    assert recipe.teacher.weights == tmp_path / "w.safetensors"
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipe.toml")) == recipe


def test_environment_variables_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_DATA", "/some/da\\1ta")
    monkeypatch.setenv("KDCACHE_DATABASE", "/other")
    monkeypatch.setenv("HOME", "/home/me")

    def images(text: str) -> Path | None:
        return load(tmp_path, f"[source]\nkind = 'idx'\nimages = '{text}'").source.images

    assert data_root() == Path("/some/da\\1ta")
    assert images("$KDCACHE_DATA/x") == Path("/some/da\\1ta/x")
    assert images("${KDCACHE_DATA}/x") == Path("/some/da\\1ta/x")
    assert images("$KDCACHE_DATABASE/x") == Path("/other/x")
    assert images("~/x") == Path("/home/me/x")
    monkeypatch.delenv("KDCACHE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert images("${KDCACHE_DATA}/x") == Path("/cache/kdcache/data/x")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path("/home/me/.cache/kdcache/data")
    with pytest.raises(UsageError, match="environment variable in this path is not set"):
        images("$NO_SUCH_VARIABLE_HERE/x")
    with pytest.raises(UsageError, match="no such user"):
        images("~no-such-user-here/x")
    with pytest.raises(UsageError, match="NUL"):
        load(tmp_path, '[source]\nkind = "idx"\nimages = "a\\u0000b"')


# students


def test_one_student_takes_everything_from_the_recipe(tmp_path: Path) -> None:
    (only,) = students(tmp_path, GOOD).values()
    assert (only.name, only.model, only.args) == ("student", "zoo:mlp", {"hidden": [32]})
    assert [term.name for term in only.objective] == ["kd", "ce"]
    assert (only.train.epochs, only.train.seeds) == (12, (0, 1, 2))


def test_students_inherit_what_they_leave_out(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
    [students.same]
    [students.wide]
    args = { hidden = [256] }
    [students.other]
    model = "zoo:cnn"
    [students.fast.train]
    lr = 0.1
    seeds = [5]
    [students.short.train]
    steps = 40
    [[students.hard.objective]]
    name = "ce"
    """
    )
    found = students(tmp_path, text)
    assert list(found) == ["same", "wide", "other", "fast", "short", "hard"]
    assert found["same"].args == {"hidden": [32]}
    assert found["wide"].args == {"hidden": [256]}
    assert (found["other"].model, found["other"].args) == ("zoo:cnn", {}), (
        "args belong to the model they were given for"
    )
    assert (found["fast"].train.lr, found["fast"].train.seeds, found["fast"].train.epochs) == (0.1, (5,), 12)
    assert (found["short"].train.steps, found["short"].train.epochs) == (40, None), "one length replaces the other"
    assert [term.name for term in found["hard"].objective] == ["ce"]


def test_the_student_tables_own_objective_and_train_are_inherited(tmp_path: Path) -> None:
    text = """
    [source]
    kind = "digits"
    [student]
    model = "zoo:mlp"
    train = { lr = 0.5, steps = 3 }
    [[student.objective]]
    name = "soft_ce"
    [students.a]
    [students.b.train]
    epochs = 2
    [train]
    epochs = 9
    """
    found = students(tmp_path, text)
    assert [term.name for term in found["a"].objective] == ["soft_ce"]
    assert (found["a"].train.lr, found["a"].train.steps, found["a"].train.epochs) == (0.5, 3, None)
    assert (found["b"].train.lr, found["b"].train.steps, found["b"].train.epochs) == (0.5, None, 2)


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ("[students.teacher]\nmodel = 'zoo:mlp'", "teacher and baseline are taken"),
        ("[students.baseline]\nmodel = 'zoo:mlp'", "teacher and baseline are taken"),
        ("[students.baseline-2]\nmodel = 'zoo:mlp'", "teacher and baseline are taken"),
        ("[students.a]\nargs = {}", "students.a: no model"),
        ("[students.a]\nmodel = 'zoo:mlp'\nobjective = []", r"'a': no \[\[objective\]\]"),
        ("[students.a]\nmodel = 'zoo:mlp'\ntrain = { epochs = 1, steps = 1 }", "students.a.train: give `epochs` or"),
        ("[grid]\n'kd.weight' = [1]", "multiplies a student, and the recipe names none"),
    ],
)  # fmt: skip
def test_students_that_cannot_be(tmp_path: Path, tail: str, said: str) -> None:
    text = f"[source]\nkind = 'digits'\n[[objective]]\nname = 'kd'\n{tail}\n"
    with pytest.raises(UsageError, match=said):
        students(tmp_path, text)


def test_a_recipe_without_students(tmp_path: Path) -> None:
    assert students(tmp_path, "[source]\nkind = 'digits'") == {}


# grid


def terms(student: Student) -> list[tuple[str, float, float | None]]:
    return [(term.name, term.weight, term.options.get("temperature")) for term in student.objective]


def test_the_grid_multiplies_its_axes(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
    [grid]
    "kd.weight, ce.weight" = [[0.1, 0.9], [0.5, 0.5]]
    "kd.temperature" = [1.0, 4.0]
    """
    )
    found = students(tmp_path, text)
    assert list(found) == [f"kd.weight={w},kd.temperature={t}" for w in (0.1, 0.5) for t in (1.0, 4.0)]
    last = found["kd.weight=0.5,kd.temperature=4.0"]
    assert terms(last) == [("kd", 0.5, 4.0), ("ce", 0.5, None)]
    assert last.train == students(tmp_path, GOOD)["student"].train


def test_the_grid_sets_train_args_and_model(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
    [grid]
    "train.lr" = [0.1, 0.2]
    "args.hidden" = [[16], [32, 32]]
    """
    )
    found = students(tmp_path, text)
    assert list(found) == [f"train.lr={lr},args.hidden={h}" for lr in (0.1, 0.2) for h in ("16", "32-32")]
    assert found["train.lr=0.2,args.hidden=32-32"].args == {"hidden": [32, 32]}
    models = students(tmp_path, GOOD + '[grid]\n"model" = ["zoo:mlp", "zoo:cnn"]')
    assert [s.model for s in models.values()] == ["zoo:mlp", "zoo:cnn"]


def test_two_terms_of_one_name_stay_two(tmp_path: Path) -> None:
    text = GOOD.replace('name = "ce"', 'name = "kd"\ntemperature = 8.0')
    (cell,) = students(tmp_path, text + '[grid]\n"kd.1.weight, kd.weight" = [[0.3, 0.7]]\n').values()
    assert terms(cell) == [("kd", 0.7, 2.0), ("kd", 0.3, 8.0)]
    assert cell.name == "kd.1.weight=0.3"


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ('"dkd.weight" = [1]', "'dkd.weight' is not a setting of the student; keys look like"),
        ('"kd" = [1]', "'kd' is not a setting"),
        ('"kd.2.weight" = [1]', "is not a setting"),
        ('"train" = [1]', "'train' is not a setting"),
        ('"train.epoch" = [1]', "did you mean .*'epochs'"),
        ('"kd.weight" = ["much"]', "grid cell kd.weight=much: weight"),
        ('"kd.weight" = []', "has no values"),
        ('"kd.weight, ce.weight" = [1]', "each value is a list of 2, not 1"),
        ('"kd.weight, ce.weight" = [[1, 2, 3]]', "each value is a list of 2"),
        ('"kd.weight" = [0.5, 0.5]', "two cells would both be called"),
        ('"args.hidden" = [[1, 2], "1-2"]', "two cells would both be called"),
        ('"kd.weight, kd.weight" = [[1, 2]]', "'kd.weight' is set twice"),
        ('"kd.weight" = [1]\n"kd.temperature, kd.weight" = [[1, 2]]', "'kd.weight' is set twice"),
        ('"model" = [3]', "grid cell model=3: model"),
        ('"args.x" = [nan]', "args: arguments are numbers, strings"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be(tmp_path: Path, grid: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        students(tmp_path, f"{GOOD}\n[grid]\n{grid}\n")


def test_a_grid_cells_name_is_a_folder_of_the_run(tmp_path: Path) -> None:
    found = students(tmp_path, GOOD + '[grid]\n"args.../../up" = ["../../x"]\n')
    assert all("/" not in name for name in found)


# anything at all

SCALARS = st.one_of(
    st.none().map(lambda _: "nan"), st.booleans().map(lambda b: str(b).lower()), st.integers().map(str),
    st.floats().map(lambda f: repr(f) if f == f and abs(f) != float("inf") else "inf"),
    st.text(st.characters(exclude_categories=["C"], exclude_characters="'"), max_size=8).map(lambda s: f"'{s}'"),
    st.sampled_from(["[]", "{}", "[[]]", "2020-01-01", "07:30:00", "{ x = 1 }", "'~x'", "'$X'", '"\\u0000"', "''"]),
)  # fmt: skip
LINES = GOOD.splitlines()


@given(
    st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["drop", "twice", "value", "key", "text"]),
                       SCALARS, st.text(string.printable, max_size=6)), min_size=1, max_size=4)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_mutated_recipe_is_a_recipe_or_a_usage_error(
    tmp_path_factory: Any, edits: list[tuple[int, str, str, str]]
) -> None:
    lines = list(LINES)
    for place, what, value, text in edits:
        line = lines[place % len(lines)]
        match what:
            case "drop":
                line = ""
            case "twice":
                line = f"{line}\n{line}"
            case "value":
                line = f"{line.partition('=')[0]} = {value}"
            case "key":
                line = f"'{text.replace(chr(39), '')}' = {line.partition('=')[2]}"
            case _:
                line = line[: place % (len(line) + 1)] + text + line[place % (len(line) + 1) :]
        lines[place % len(lines)] = line
    path = tmp_path_factory.getbasetemp() / "mutated.toml"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    with contextlib.suppress(UsageError):
        resolve_students(load_recipe(path))


@given(st.lists(st.tuples(st.text(string.ascii_lowercase + ".,_01\"' ", max_size=12), SCALARS), max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_override_gives_a_recipe_or_a_usage_error(tmp_path_factory: Any, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "good.toml"
    path.write_text(GOOD)
    with contextlib.suppress(UsageError):
        resolve_students(load_recipe(path, [f"{key}={value}" for key, value in pairs]))
