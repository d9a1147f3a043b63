"""Series of values: windows, targets, parts, anomalies; the Numenta benchmark's own files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources import Source, open_source
from kdcache.sources.series_files import read_series

START = np.datetime64("2020-01-01T00:00:00")


def stamp(row: int) -> str:
    return str(START + np.timedelta64(row, "h")).replace("T", " ")


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{stamp(row)},{value!r}\n" for row, value in enumerate(values.tolist()))
    path.write_text("timestamp,value\n" + rows)
    return path


def windows(path: Path, table: dict[str, list[tuple[int, int]]]) -> Path:
    path.write_text(json.dumps({key: [[stamp(a), stamp(b)] for a, b in pairs] for key, pairs in table.items()}))
    return path


def opened(**keys: object) -> Source:
    table = {"kind": "series", "window": 4, "parts": [0.4, 0.7], "probation": 0.25, **keys}
    return open_source(SourceConfig.model_validate(table))


@pytest.fixture
def two(tmp_path: Path) -> dict[str, object]:
    """Two series of 20 and 12 rows; anomalies at rows 2 and 9 to 11 of the first."""
    generator = np.random.default_rng(0)
    files = [
        write(tmp_path / "a" / "x.csv", generator.normal(5, 3, 20)),
        write(tmp_path / "b" / "x.csv", np.arange(12.0)),
    ]
    return {"files": files, "labels": windows(tmp_path / "w.json", {"a/x.csv": [(2, 2), (9, 11)], "b/x.csv": []})}


def test_every_window_by_hand(two: dict[str, object]) -> None:
    values = [read_series(path).values for path in two["files"]]
    scaled = [
        # Probation: rows 0 to 4 of the first without row 2, which is an anomaly; rows 0 to 2 of the second.
        (values[0] - values[0][[0, 1, 3, 4]].mean()) / values[0][[0, 1, 3, 4]].std(),
        (values[1] - values[1][:3].mean()) / values[1][:3].std(),
    ]
    # Cuts: 0.4 and 0.7 of 20 are 8 and 14, of 12 they are 4 and 8. A window has 4 values, its target the next.
    expected = {"train": [], "test": []}
    odd = [{2, 9, 10, 11}, set()]
    number = 0
    for series, (cuts, count) in enumerate([((8, 14), 20), ((4, 8), 12)]):
        for start in range(count - 4):
            position = start + 4
            part = sum(position >= cut for cut in cuts)
            row = (number, start, series, position, part, int(position in odd[series]))
            number += 1
            if part > 0:
                expected["test"].append(row)
            elif not odd[series] & set(range(start, position + 1)):
                expected["train"].append(row)
    for split, rows in expected.items():
        source = opened(**two, split=split)
        assert source.ids().tolist() == [row[0] for row in rows]
        found = source.read(source.ids())
        np.testing.assert_array_equal(found["series"], [row[2] for row in rows])
        np.testing.assert_array_equal(found["position"], [row[3] for row in rows])
        np.testing.assert_array_equal(found["part"], [row[4] for row in rows])
        np.testing.assert_array_equal(found["label"], [row[5] for row in rows])
        np.testing.assert_array_equal(source.labels(), found["label"])
        for place, (_, start, series, position, _, _) in enumerate(rows):
            np.testing.assert_allclose(found["input"][place], scaled[series][start:position], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(found["target"][place], scaled[series][position:][:1], rtol=1e-6, atol=1e-6)
    train = opened(**two)
    assert train.arrays["input"] == Array("float32", (4,))
    assert train.arrays["target"] == Array("float32", (1,))
    assert (train.classes, train.class_names) == (2, ("normal", "anomaly"))
    backwards = train.ids()[::-1].copy()
    np.testing.assert_array_equal(train.read(backwards)["position"], [r[3] for r in expected["train"]][::-1])
    packed = [path.with_name("x.csv.gz") for path in two["files"]]
    for before, after in zip(two["files"], packed, strict=True):
        after.write_bytes(gzip.compress(before.read_bytes()))
    assert opened(files=packed, labels=two["labels"]).fingerprint() == train.fingerprint()
    with pytest.raises(UsageError, match="has no sample with id"):
        train.read(opened(**two, split="test").ids()[:1])


def test_horizon_nought_is_the_window_itself(two: dict[str, object]) -> None:
    source = opened(**two, horizon=0, split="test")
    rows = source.read(source.ids())
    np.testing.assert_array_equal(rows["input"], rows["target"])
    assert source.arrays["target"] == Array("float32", (4,))
    far = opened(**two, horizon=3, split="test")
    rows = far.read(far.ids())
    follows = (np.diff(rows["series"]) == 0) & (np.diff(rows["position"]) == 1)
    np.testing.assert_array_equal(rows["target"][:-1][follows][:, 1:], rows["target"][1:][follows][:, :-1])
    np.testing.assert_array_equal(rows["input"][1:][follows][:, -1], rows["target"][:-1][follows][:, 0])
    sparse = opened(**two, stride=3, split="test")
    position = sparse.read(sparse.ids())["position"]
    assert set(np.diff(position)[np.diff(position) > 0]) == {3}
    others = ({"split": "test"}, {"split": "test", "horizon": 0}, {"split": "test", "stride": 3}, {})
    assert len({opened(**two, **keys).fingerprint() for keys in others}) == 4


def test_a_cut_inside_an_anomaly_moves_to_its_end(tmp_path: Path) -> None:
    files = [write(tmp_path / "x.csv", np.random.default_rng(1).normal(size=40))]
    labels = windows(tmp_path / "w.json", {"x.csv": [(26, 31)]})
    rows = opened(files=files, labels=labels, split="test")
    found = rows.read(rows.ids())
    assert found["position"][found["part"] == 2].min() == 32
    assert found["label"][found["part"] == 1].sum() == 6
    assert found["label"][found["part"] == 2].sum() == 0


def test_without_anomalies_there_is_no_label(tmp_path: Path, two: dict[str, object]) -> None:
    folder = opened(path=tmp_path)
    assert "label" not in folder.arrays
    assert (folder.classes, folder.labels()) == (None, None)
    assert len(folder) > len(opened(**two)), "nothing is left out"
    assert "label" not in opened(**two, unlabelled=True).arrays
    flat = write(tmp_path / "flat" / "z.csv", np.full(20, 3.0))
    assert (opened(files=[flat]).read(np.array([0]))["input"] == 0).all(), "a constant series is nought, not NaN"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no rows"),
        (b"time,value\n", r"line 1: its header is \['time', 'value'\]; expected timestamp,value"),
        (b"timestamp,value\n", "holds no rows under its header"),
        (b"timestamp,value\n2020-01-01,1,2\n", "line 2: has 3 cells"),
        (b"timestamp,value\nyesterday,1\n", "line 2: 'yesterday' is no time"),
        (b"timestamp,value\n2020-01-01T00:00:00+01:00,1\n", "has a time zone"),
        (b"timestamp,value\n2020-01-01,nan\n", "line 2: its value is 'nan'; expected a finite number"),
        (b"timestamp,value\n2020-01-01,1\n2020-01-02,inf\n", "line 3: its value is 'inf'"),
        (b"timestamp,value\n2020-01-01,\n", "line 2: its value is ''"),
        (b"timestamp,value\n2020-01-01,1\n2020-01-02,2\n2020-01-01,1\n", "line 4: 2020-01-01 .* comes after"),
        (b"timestamp,value\n2020-01-01,\xff\n", "line 2: byte 27 .* is not UTF-8"),
        (b"timestamp,value\n2020-01-01,1\n", "has 1 rows, fewer than the 5 of a window"),
        (b"\xef\xbb\xbf", "its header is"),
        (b'timestamp,value\n"2020-01-01,1\n', "wrongly quoted"),
    ],
)  # fmt: skip
def test_bad_files_are_named_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(SourceError, match=said):
        opened(path=tmp_path)


def test_clocks_go_back_an_hour_and_values_may_be_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("timestamp,value\n2020-10-25 02:55:00,1\n2020-10-25 02:00:00,2\n2020-10-25 02:00:00,3\n")
    assert read_series(path).values.tolist() == [1, 2, 3]
    values = np.arange(40.0)
    values[20] = 1e200
    with pytest.raises(SourceError, match="row 20 does not fit float32 once standardised"):
        opened(files=[write(path, values)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"y.csv": []}', "names 0 series that .*x.csv could be"),
        ('{"x.csv": [], "a/x.csv": []}', "names 2 series"),
        ('{"x.csv": [["2020-01-01"]]}', "is no window; expected"),
        ('{"x.csv": 3}', "3 is no window"),
        ('{"x.csv": [["2020-01-02", "2020-01-01"]]}', "ends before it begins"),
        ('{"x.csv": [["2020-01-02", "tomorrow"]]}', "'tomorrow' is no time"),
        ('{"x.csv": [["2019-01-01", "2021-01-01"]]}', "nothing says what is normal; raise `probation`"),
    ],
)
def test_bad_anomaly_files(tmp_path: Path, content: str, said: str) -> None:
    files = [write(tmp_path / "a" / "x.csv", np.arange(20.0))]
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(SourceError, match=said):
        opened(files=files, labels=tmp_path / "w.json")


def test_keys_that_cannot_work(tmp_path: Path) -> None:
    files = [write(tmp_path / "x.csv", np.arange(20.0))]
    with pytest.raises(UsageError, match="has no split 'val'; a series has train, and test"):
        opened(files=files, split="val")
    with pytest.raises(UsageError, match="fitting ends before calibration does"):
        opened(files=files, parts=[0.7, 0.4])
    with pytest.raises(SourceError, match="split 'train' has no window"):
        opened(files=files, window=12)
    with pytest.raises(SourceError, match=r"holds no \.csv"):
        opened(path=tmp_path / "nowhere")


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text('timesap,vlu\n0123-:. "', max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", b"timestamp,value\n2020-01-01,1\n"):
        path.write_bytes(start + content)
        try:
            found = read_series(path)
        except SourceError:
            continue
        assert len(found.times) == len(found.values) > 0
        assert np.isfinite(found.values).all()


def test_nab(data_root: Path) -> None:
    if not (data_root / "nab").is_dir():
        pytest.skip(f"no nab in {data_root}")
    train = open_source(SourceConfig(dataset="nab", window=32))
    test = open_source(SourceConfig(dataset="nab", window=32, split="test"))
    fitted, judged = train.read(train.ids()), test.read(test.ids())
    assert not fitted["label"].any()
    assert not fitted["part"].any()
    assert not np.intersect1d(train.ids(), test.ids()).size
    assert sorted(set(judged["part"])) == [1, 2]
    assert sorted(set(judged["series"])) == list(range(7))
    # In every series what is fitted comes before what is calibrated, and that before what is judged.
    for series in range(7):
        last = fitted["position"][fitted["series"] == series].max()
        for part in (1, 2):
            position = judged["position"][(judged["series"] == series) & (judged["part"] == part)]
            assert position.min() > last
            last = position.max()
    # Windows of the benchmark: 6 in the calibration part, 11 in the part to judge, 2 in what is fitted (left out).
    begins = (np.diff(judged["label"], prepend=0) == 1) & (judged["label"] == 1)
    assert [int(begins[judged["part"] == part].sum()) for part in (1, 2)] == [6, 11]
    assert np.isfinite(fitted["input"]).all()
    assert len(test) == 45_218
