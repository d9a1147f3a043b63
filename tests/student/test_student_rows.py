"""Which rows a fit trains on and holds out, and how long it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from student_stores import digits, write_store

from kdcache.config import EarlyStopping, ObjectiveConfig, TrainConfig
from kdcache.errors import StoreMismatch, UsageError
from kdcache.student import planned_steps, rows_used
from kdcache.student.data import open_data
from kdcache.student.rows import choose_rows, evaluation_interval, remainder, steps_per_epoch

STOPPING = EarlyStopping(patience=3)


def test_a_baseline_holds_out_the_labelled_part_of_what_its_student_holds_out(digits_store: Path) -> None:
    train = TrainConfig(early_stopping=STOPPING, holdout=0.2)
    with open_data([digits_store]) as data:
        student, baseline = choose_rows(data, train, False), choose_rows(data, train, True)
        assert student.held is not None
        assert baseline.held is not None
        assert not (student.train & student.held).any()
        assert (student.train | student.held).all()
        assert ((baseline.train | baseline.held) == (data.labelled)).all()
        assert (baseline.held == (student.held & (data.labelled))).all()
        assert 0.15 < student.held.mean() < 0.25


def test_the_held_out_rows_follow_the_ids_not_the_seed_or_the_order(tmp_path: Path) -> None:
    inputs, labels = digits()
    one = write_store(tmp_path / "one", inputs[:400], labels[:400])
    two = write_store(tmp_path / "two", inputs[:400], labels[:400], block_rows=32)
    held = []
    for store, seeds in ((one, (0,)), (two, (1, 2))):
        with open_data([store]) as data:
            rows = choose_rows(data, TrainConfig(early_stopping=STOPPING, seeds=seeds), True)
            assert rows.held is not None
            held.append(set(data.ids[rows.held].tolist()))
    assert held[0] == held[1]


def test_nothing_is_held_out_without_early_stopping(digits_store: Path) -> None:
    with open_data([digits_store]) as data:
        rows = choose_rows(data, TrainConfig(), True)
        assert rows.held is None
        assert int(rows.train.sum()) == 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"holdout": 0.0}, "holdout = 0"),
        ({"holdout": 1e-6}, "holds out 0"),
    ],
)
def test_a_holdout_that_watches_nothing_is_refused(digits_store: Path, change: dict[str, float], said: str) -> None:
    with open_data([digits_store]) as data, pytest.raises(UsageError, match=said):
        choose_rows(data, TrainConfig(early_stopping=STOPPING, **change), True)


def test_labels_are_needed_where_the_objective_reads_nothing_else(tmp_path: Path) -> None:
    inputs, _ = digits()
    store = write_store(tmp_path / "s", inputs[:100], np.full(100, -1))
    with open_data([store]) as data, pytest.raises(UsageError, match="none of its 100 rows has a label"):
        choose_rows(data, TrainConfig(), True)
    watching = TrainConfig(early_stopping=EarlyStopping(metric="val_accuracy"))
    with open_data([store]) as data, pytest.raises(UsageError, match="watch val_loss"):
        choose_rows(data, watching, False)


def test_stores_of_other_rows_cannot_be_zipped(digits_store: Path, digits_eval: Path) -> None:
    with pytest.raises(StoreMismatch, match="not aligned"), open_data([digits_store, digits_eval]):
        pass


@pytest.mark.parametrize(
    ("rows", "batch", "kept", "steps"),
    [
        (100, 10, "drop", 10),
        (105, 10, "keep", 11),
        (104, 10, "drop", 10),
        (101, 100, "drop", 1),
        (3, 10, "keep", 1),
    ],
)
def test_a_short_last_batch_is_kept_from_half_a_batch_on(rows: int, batch: int, kept: str, steps: int) -> None:
    assert remainder(rows, batch) == kept
    assert steps_per_epoch(rows, batch) == steps


def test_planned_steps() -> None:
    assert planned_steps(TrainConfig(epochs=3, batch_size=10), 105) == 33
    assert planned_steps(TrainConfig(batch_size=10), 100) == 100
    assert planned_steps(TrainConfig(steps=7), 10**6) == 7


def test_a_baseline_takes_its_students_steps_and_looks_as_often(digits_store: Path) -> None:
    train = TrainConfig(epochs=4, batch_size=64)
    kd, ce = ObjectiveConfig(name="kd"), ObjectiveConfig(name="ce")
    student, baseline = rows_used([digits_store], [kd, ce], train), rows_used([digits_store], [ce], train)
    assert (student, baseline) == (1400, 300)
    steps = planned_steps(train, student)
    assert steps == 88
    assert evaluation_interval(train, steps, steps_per_epoch(student, 64)) == 22
    assert evaluation_interval(train, steps, steps_per_epoch(baseline, 64)) == 22


def test_a_fit_given_in_steps_looks_once_a_pass_at_most_a_hundred_times() -> None:
    train = TrainConfig(steps=4000)
    assert evaluation_interval(train, 4000, 234) == 234
    assert evaluation_interval(train, 4000, 8) == 40
