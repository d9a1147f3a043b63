"""rows, labelled, and the choice behind them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.sources.source import ArraySource
from kdcache.sources.subset import choose, keep_labels, keep_rows


def toy(rows: int = 40, unlabelled: int = 0) -> ArraySource:
    labels = np.arange(rows) % 4
    labels[:unlabelled] = -1
    return ArraySource("toy", np.arange(rows * 3, dtype=np.uint8).reshape(rows, 3), labels, classes=4)


def test_the_choice_never_changes() -> None:
    assert choose(np.arange(20), 5, "rows", 0).tolist() == [4, 6, 8, 9, 14]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 60), seed=st.integers(-5, 5), data=st.data())
def test_choices_are_nested_ascending_and_of_the_asked_length(rows: int, seed: int, data: st.DataObject) -> None:
    ids = np.arange(rows) * 3
    many = data.draw(st.integers(1, rows))
    few = data.draw(st.integers(1, many))
    longer, shorter = (choose(ids, count, "rows", seed) for count in (many, few))
    assert (len(longer), len(shorter)) == (many, few)
    assert (np.diff(longer) > 0).all()
    assert set(shorter.tolist()) <= set(longer.tolist()) <= set(ids.tolist())


def test_a_choice_is_even_over_the_ids() -> None:
    kept = choose(np.arange(10_000), 2_000, "rows", 7)
    per_tenth = np.bincount(kept // 1000, minlength=10)
    assert np.abs(per_tenth - 200).max() < 5 * np.sqrt(200 * 0.8)


def test_rows_keep_their_ids_and_contents() -> None:
    whole = toy()
    part = keep_rows(whole, 10, seed=3)
    ids = part.ids()
    assert len(part) == len(ids) == 10
    assert (part.classes, part.arrays) == (4, whole.arrays)
    asked = ids[::-1].copy()
    for key, values in part.read(asked).items():
        np.testing.assert_array_equal(values, whole.read(asked)[key])
    np.testing.assert_array_equal(part.labels(), whole.read(ids)["label"])
    outside = np.setdiff1d(whole.ids(), ids)[:1]
    with pytest.raises(UsageError, match=f"no sample with id {outside[0]}"):
        part.read(outside)
    assert ids.tolist() != keep_rows(whole, 10, seed=4).ids().tolist()


def test_labelled_hides_all_but_so_many() -> None:
    few = keep_labels(keep_rows(toy(unlabelled=20), 30, seed=0), 5, seed=0)
    labels = few.read(few.ids())["label"]
    assert len(few) == 30
    assert (labels >= 0).sum() == 5
    assert few.classes == 4
    np.testing.assert_array_equal(few.labels(), labels)
    np.testing.assert_array_equal(labels[labels >= 0], few.ids()[labels >= 0] % 4)
    np.testing.assert_array_equal(few.read(few.ids()[::-1])["label"], labels[::-1])


def test_further_arrays_come_along_and_further_labels_are_hidden_too() -> None:
    more = {"label.coarse": np.arange(40) % 2, "node": np.arange(40), "fact": np.arange(80.0).reshape(40, 2)}
    whole = ArraySource(
        "toy",
        np.zeros((40, 3)),
        np.arange(40) % 4,
        classes=4,
        more=more,
        extra={"tokenizer": 1},
        label_classes={"label.coarse": 2},
    )
    part = keep_labels(keep_rows(whole, 20, seed=1), 5, seed=1)
    assert part.arrays == whole.arrays
    assert (part.extra, part.label_classes) == ({"tokenizer": 1}, {"label.coarse": 2})
    ids = part.ids()[::-1].copy()
    rows = part.read(ids)
    np.testing.assert_array_equal(rows["node"], ids)
    np.testing.assert_array_equal(rows["fact"], more["fact"][ids])
    np.testing.assert_array_equal(rows["label.coarse"] >= 0, rows["label"] >= 0)
    assert (rows["label"] >= 0).sum() == 5
    shown = rows["label"] >= 0
    np.testing.assert_array_equal(rows["label.coarse"][shown], ids[shown] % 2)
    changed = {**more, "node": np.arange(40)[::-1]}
    other = ArraySource("toy", np.zeros((40, 3)), np.arange(40) % 4, classes=4, more=changed)
    assert other.fingerprint() != whole.fingerprint()


def test_fingerprints_tell_keys_apart() -> None:
    whole = toy()
    prints = {
        whole.fingerprint(),
        keep_rows(whole, 10, 0).fingerprint(),
        keep_rows(whole, 10, 1).fingerprint(),
        keep_rows(whole, 11, 0).fingerprint(),
        keep_labels(whole, 10, 0).fingerprint(),
        keep_labels(whole, 11, 0).fingerprint(),
        keep_labels(keep_rows(whole, 10, 0), 10, 0).fingerprint(),
    }
    assert len(prints) == 7
    assert keep_rows(toy(), 10, 0).fingerprint() in prints


def test_more_than_there_are() -> None:
    with pytest.raises(UsageError, match="toy: rows = 41 is more than the 40 that it has"):
        keep_rows(toy(), 41, 0)
    with pytest.raises(UsageError, match="labelled = 21 is more than the 20 labels that it has"):
        keep_labels(toy(unlabelled=20), 21, 0)
    unlabelled = ArraySource("toy", np.zeros((3, 1)), None, classes=None)
    with pytest.raises(UsageError, match="labelled = 1 is more than the 0 labels"):
        keep_labels(unlabelled, 1, 0)
