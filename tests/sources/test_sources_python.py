"""Sources that a Python object gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.arrays import Array
from kdcache.errors import SourceError, UsageError
from kdcache.sources.python import PythonSource, open_python
from kdcache.sources.source import ArraySource

MODULE = """
import numpy as np

class Numbers:
    def __init__(self, count=5, labels=True):
        self.count, self.labels = count, labels
    def __len__(self):
        return self.count
    def read(self, ids):
        rows = {"input": np.stack([ids, ids * 2], axis=1).astype(">f8")}
        return rows | ({"label": (ids % 3).astype(np.uint8)} if self.labels else {})

constant = 3

def fails():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"a_colleagues_module_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


class Given:
    """Whatever a test wants to give."""

    def __init__(self, rows: dict[str, Any], **extras: Any) -> None:
        self.rows = rows
        self.__dict__.update(extras)

    def __len__(self) -> int:
        return len(self.rows["input"])

    def read(self, ids: np.ndarray) -> dict[str, Any]:
        return {key: values[ids] for key, values in self.rows.items()}


def test_arrays_and_classes_are_found_by_reading(module: str) -> None:
    source = open_python(f"{module}:Numbers", {"count": 7})
    assert source.arrays == {"input": Array("float64", (2,)), "label": Array("int64")}
    assert (len(source), source.classes, source.class_names) == (7, 3, ())
    rows = source.read(np.array([6, 1]))
    np.testing.assert_array_equal(rows["input"], [[6, 12], [1, 2]])
    np.testing.assert_array_equal(rows["label"], [0, 1])
    assert rows["input"].dtype == np.dtype("<f8")
    assert open_python(f"{module}:Numbers", {"labels": False}).classes is None


def test_fingerprint_is_of_the_contents_or_the_objects_own(module: str) -> None:
    source = open_python(f"{module}:Numbers", {})
    ids = np.arange(5)
    same = ArraySource("toy", np.stack([ids, ids * 2], axis=1).astype(np.float64), ids % 3, classes=3)
    assert source.fingerprint() == same.fingerprint()
    assert source.fingerprint() != open_python(f"{module}:Numbers", {"count": 6}).fingerprint()
    own = Given({"input": np.zeros((2, 1))}, fingerprint=lambda: "f" * 64)
    assert PythonSource("own", own).fingerprint() == "f" * 64


def test_optional_attributes() -> None:
    ids = np.array([3, 8], np.int32)
    inner = Given({"input": np.arange(9.0), "label": np.arange(9)}, ids=lambda: ids, class_names=("a",) * 9)
    inner.__class__ = type("Two", (Given,), {"__len__": lambda self: 2})
    source = PythonSource("two", inner)
    assert source.ids().dtype == np.int64
    assert source.classes == 9
    np.testing.assert_array_equal(source.read(np.array([8, 3]))["label"], [8, 3])
    with pytest.raises(UsageError, match="two: has no sample with id 4"):
        source.read(np.array([4]))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("Numbers", "write it as package.module:factory"),
        ("nowhere.at.all:Numbers", "cannot be imported"),
        ("{module}:Number", "the module has no 'Number'"),
        ("{module}:constant", "is a int, not something to call"),
        ("{module}:fails", "raised RuntimeError: no luck"),
        ("builtins:int", "gave a int; a source needs __len__ and read"),
    ],
)
def test_bad_references_are_named(module: str, reference: str, said: str) -> None:
    reference = reference.format(module=module)
    with pytest.raises(UsageError, match=said) as error:
        open_python(reference, {})
    assert reference in str(error.value)


def test_bad_arguments_are_named(module: str) -> None:
    with pytest.raises(UsageError, match=r"called with \{'cuont': 3\} it raised TypeError"):
        open_python(f"{module}:Numbers", {"cuont": 3})


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (Given({"input": np.zeros((2, 1)), "a b": np.zeros(2)}), r"gave 'a b'; an array's name has letters"),
        (Given({"input": np.zeros((2, 1)), "id": np.zeros(2, int)}), "`id` is taken"),
        (
            Given({"input": np.zeros((2, 1)), "other": np.array(["a", "b"])}),
            r"\['other'\]: its values are .*no store keeps",
        ),
        (
            Given({"input": np.zeros((2, 1))}, read=lambda ids: {"label": np.zeros(len(ids), int)}),
            r"gave \['label'\]; expected a dict with",
        ),
        (Given({"input": np.array(["a", "b"])}), "which no store keeps"),
        (Given({"input": np.zeros((0, 1))}), "has 0 samples"),
        (Given({"input": np.zeros((2, 1))}, ids=lambda: np.array([1, 1])), "ascending"),
        (Given({"input": np.zeros((2, 1))}, read=lambda ids: {"input": np.zeros(())}), r"gave input of shape \[\]"),
        (Given({"input": np.zeros((2, 1))}, read=lambda ids: [1]), "gave list; expected a dict"),
        (Given({"input": np.zeros((2, 1))}, read=lambda ids: 1 / 0), r"read\(\) raised ZeroDivisionError"),
    ],
)
def test_bad_objects(inner: Any, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        PythonSource("bad", inner)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (
            {"input": np.zeros((2, 3), np.float32), "label": np.zeros(2, int)},
            r"inputs float32\[3\], and float64\[3\] the first time",
        ),
        ({"input": np.zeros((2, 4)), "label": np.zeros(2, int)}, r"inputs float64\[4\]"),
        ({"input": np.zeros((2, 3))}, r"gave \['input'\], and \['input', 'label'\] the first time"),
        ({"input": np.zeros((2, 3)), "label": np.zeros(2)}, "labels must be whole numbers"),
        ({"input": np.zeros((2, 3)), "label": np.array([0, 5])}, "row 1 has label 5, allowed are 0 to 1"),
        ({"input": np.zeros((3, 3)), "label": np.zeros(2, int)}, r"read\(\) of 2 ids gave input of shape \[3, 3\]"),
    ],
)
def test_what_changes_between_reads_is_refused(later: dict[str, Any], said: str) -> None:
    inner = Given({"input": np.zeros((2, 3)), "label": np.zeros(2, int)}, classes=2)
    source = PythonSource("bad", inner)
    inner.read = lambda ids: later  # type: ignore[method-assign]
    with pytest.raises(SourceError, match=said):
        source.read(source.ids())


def test_further_arrays_and_labels_of_positions() -> None:
    label = np.array([[0, -1, 4], [2, 1, 0]], np.int16)
    inner = Given({"input": np.zeros((2, 3)), "label": label, "fact": np.ones((2, 4), ">f4")})
    inner.rows["label.coarse"] = np.array([0, 1])
    source = PythonSource("more", inner)
    assert source.arrays == {
        "input": Array("float64", (3,)),
        "label": Array("int64", (3,)),
        "fact": Array("float32", (4,)),
        "label.coarse": Array("int64"),
    }
    assert source.classes == 5
    assert source.labels() is None
    rows = source.read(np.array([1, 0]))
    np.testing.assert_array_equal(rows["label"], label[::-1])
    np.testing.assert_array_equal(rows["label.coarse"], [1, 0])
    assert rows["fact"].dtype == np.dtype("<f4")
    before = source.fingerprint()
    inner.rows["fact"] = inner.rows["fact"] * 2
    assert PythonSource("more", inner).fingerprint() != before
    inner.rows["fact"] = np.ones((2, 5))
    with pytest.raises(SourceError, match=r"gave facts float64\[5\], and float32\[4\] the first time"):
        source.read(np.array([0]))
