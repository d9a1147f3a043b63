"""Text classification: tables of sentences, their token ids, a vocabulary shared with masked language models."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import KdcacheError, SourceError, UsageError
from kdcache.sources import check_same_vocabulary, open_source
from kdcache.sources.sentences import read_sentences

TABLE = 'a fine film\t1\nno good\t0\nso "so" , at best\t-1\n'


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def opened(path: Path, **keys: object) -> object:
    return open_source(SourceConfig.model_validate({"kind": "tsv", "files": [path], "tokenizer": "bytes", **keys}))


def test_rows_are_start_bytes_end_and_padding(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.tsv", TABLE), length=10)
    assert source.arrays == {"input": Array("int32", (10,)), "label": Array("int64")}
    assert (len(source), source.classes, source.name) == (3, 2, "a.tsv")
    rows = source.read(np.array([1, 0]))
    # [CLS] is 2, [SEP] 3, [PAD] 0 and byte b is b + 5.
    assert rows["input"][0].tolist() == [2, *(b + 5 for b in b"no good"), 3, 0]
    assert rows["input"][1].tolist() == [2, *(b + 5 for b in b"a fine f"), 3], "cut, but its end is kept"
    assert rows["label"].tolist() == [0, 1]
    assert source.labels().tolist() == [1, 0, -1]
    fingerprint = source.extra["tokenizer"]
    assert fingerprint["special_tokens"]["[PAD]"] == 0
    assert fingerprint["size"] == 261


def test_the_same_table_in_other_clothes(tmp_path: Path) -> None:
    plain = opened(write(tmp_path / "a.tsv", TABLE))
    quoted = 'text,label\r\na fine film,1\r\n\r\nno good,0\r\n"so ""so"" , at best",-1\r\n'
    others = [
        opened(write(tmp_path / "a.tsv.gz", gzip.compress(TABLE.encode()))),
        opened(write(tmp_path / "b.tsv", "\ufeff" + TABLE.replace("\n", "\r\n"))),
        opened(write(tmp_path / "c.csv", quoted), text_key="text"),
        opened(write(tmp_path / "d.csv", quoted.replace("label", "stars")), text_key="text", label_key="stars"),
    ]
    for other in others:
        assert other.fingerprint() == plain.fingerprint()
    unlabelled = opened(tmp_path / "d.csv", text_key="text")
    assert "label" not in unlabelled.arrays
    assert opened(tmp_path / "a.tsv", unlabelled=True).arrays == unlabelled.arrays


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "", r"a\.tsv: holds no rows \(0 bytes\)"),
        ("a.tsv", " \n\n", "holds no rows"),
        ("a.tsv", "good\t1\nbad 0\n", r"line 2: has 1 cells where 2 are expected \(sentence, label\)"),
        ("a.tsv", "good\t1\nba\td\t0\n", "line 2: has 3 cells"),
        ("a.tsv", '"ba\td"\t0\n', "line 1: has 3 cells"),
        ("a.tsv", "good\t1\n\t0\n", "line 2: its sentence is empty"),
        ("a.tsv", "good\t1\nbad\tno\n", "line 2: its label is 'no', which is no whole number"),
        ("a.tsv", "good\t1.0\n", "line 1: its label is '1.0'"),
        ("a.tsv", "good\t" + "9" * 5000 + "\n", "which is no whole number"),
        ("a.tsv", "good\t1\nbad\t-2\n", "line 2: its label is -2; allowed are 0 to"),
        ("a.tsv", "good\t9999999999\n", "line 1: its label is 9999999999; allowed are 0 to 2147483647"),
        ("a.tsv", b"good\t1\nb\xe4d\t0\n", r"line 2: byte 8 \(0xe4\) is not UTF-8"),
        ("a.csv", 'good,1\n"bad,0\n', r"line 2: wrongly quoted \(unexpected end of data\)"),
        ("a.csv", 'good,1\n"ba"d,0\n', "line 2: wrongly quoted"),
        ("a.csv", 'good,1\n"' + "x" * 140_000 + '",0\n', "a cell of more than 131072 characters"),
        ("a.csv", "\ufeff", "holds no"),
    ],
)  # fmt: skip
def test_bad_tables_are_named_by_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        opened(write(tmp_path / name, content))


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line 1: its label is 1; allowed are 0 to 0, or -1"):
        opened(write(tmp_path / "a.tsv", TABLE), classes=1)
    assert opened(tmp_path / "a.tsv", classes=7).classes == 7


def test_headers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n")
    with pytest.raises(SourceError, match=r"has no column 'sentence', it has \['text', 'label'\]"):
        opened(path, text_key="sentence")
    with pytest.raises(SourceError, match="holds no rows under its header"):
        opened(path, text_key="text")
    both = [write(tmp_path / "b.tsv", "text\tlabel\na\t1\n"), write(tmp_path / "c.tsv", "text\tother\na\t1\n")]
    with pytest.raises(SourceError, match="some of its files have labels and some have none"):
        opened(both[0], files=both, text_key="text")


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "a.tsv", TABLE)
    with pytest.raises(UsageError, match="length = 2: a row holds 2 special tokens"):
        opened(path, length=2)
    with pytest.raises(UsageError, match="needs `tokenizer`"):
        opened(path, tokenizer=None)
    with pytest.raises(UsageError, match="`vocabulary` is for a tokenizer that is trained here"):
        opened(path, vocabulary=300)
    from test_sources_text_tokenizer import saved

    with pytest.raises(UsageError, match="has no token to pad with"):
        opened(path, tokenizer=saved(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="`special` is for a tokenizer that is made here"):
        opened(path, kind="text", tokenizer=tmp_path / "tokenizer.json", special="bert")
    padded = opened(path, tokenizer=saved(tmp_path / "tokenizer.json", ("[SEP]", "[PAD]")), length=30)
    assert padded.read(np.array([1]))["input"][0, -1] == 1


def test_sentences_and_masked_text_share_a_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    table = write(tmp_path / "a.tsv", TABLE * 20)
    text = write(tmp_path / "b.txt", "the film was fine\n\nat its best it is so so\n" * 20)
    keys = {"vocabulary": 300, "tokenizer_files": (table, text)}
    sentences = opened(table, **keys, tokenizer=None)
    masked = open_source(SourceConfig(kind="text", files=(text,), masked=0.15, special="bert", document="line", **keys))
    check_same_vocabulary(sentences.extra["tokenizer"], masked.extra["tokenizer"], "sentences", "text")
    assert sentences.extra == masked.extra
    rows = masked.read(masked.ids())
    assert (rows["input"][-1] == 0).any(), "padded with [PAD]"
    assert (rows["input"] == 4).any(), "hidden by [MASK]"
    alone = opened(table, vocabulary=300, tokenizer=None)
    assert alone.extra != sentences.extra
    whole = open_source(SourceConfig(kind="text", files=(text,), tokenizer="bytes", special="bert", masked=0.15))
    assert whole.extra == opened(table).extra


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), st.text('\t\n\r,"01a é', max_size=40).map(str.encode)))
@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", content)
    for key in (None, "a"):
        try:
            found = read_sentences(path, key, "1")
        except KdcacheError:
            continue
        assert found.texts
        assert found.labels is None or len(found.labels) == len(found.texts)


def test_sst2(data_root: Path) -> None:
    if not (data_root / "sst2").is_dir():
        pytest.skip(f"no sst2 in {data_root}")
    pytest.importorskip("tokenizers")
    counts = {"train": [3310, 3610], "val": [428, 444], "test": [912, 909]}
    found = {
        split: open_source(SourceConfig(dataset="sst2", split=split, vocabulary=1000, length=64)) for split in counts
    }
    for split, source in found.items():
        rows = source.read(source.ids())
        assert np.bincount(rows["label"]).tolist() == counts[split]
        assert source.class_names == ("negative", "positive")
        assert (rows["input"][:, 0] == 2).all()
        assert (rows["input"] == 3).sum(1).tolist() == [1] * len(source)
        after_end = np.cumsum(rows["input"] == 3, axis=1) - (rows["input"] == 3)
        assert not (rows["input"] * after_end).any(), "[PAD] is 0 and nothing else follows [SEP]"
    assert len({source.extra["tokenizer"]["vocabulary"] for source in found.values()}) == 1


def test_rows_that_no_memory_holds_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "good\t1\nbad\t0\n")
    with pytest.raises(UsageError, match="the longest sentence has 4"):
        opened(path, length=2**39)
