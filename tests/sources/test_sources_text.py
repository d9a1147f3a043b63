"""Text as packed rows: documents, labels, masking, the known sets, everything that can be wrong."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.sources import Source, TextSource, open_source
from kdcache.sources.documents import Document, Part, read_documents
from kdcache.sources.packing import Packing, concatenate

END = 256


def opened(path: Path, **keys: object) -> TextSource:
    """A source of one file, in bytes unless said otherwise."""
    table = {"kind": "text", "files": [path], "tokenizer": "bytes", "length": 8, **keys}
    source = open_source(SourceConfig.model_validate({k: v for k, v in table.items() if v is not None}))
    assert isinstance(source, TextSource)
    return source


def written(folder: Path, text: str, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_packed_file_by_hand(tmp_path: Path) -> None:
    source = opened(written(tmp_path, "abc\n\nde\n\nfghijklmnop"), document="paragraph")
    assert isinstance(source, Source)
    read = source.read(source.ids())
    a, d, f, p = (ord(letter) for letter in "adfp")
    assert read["input"].tolist() == [
        [a, a + 1, a + 2, END, d, d + 1, END, f],
        [f + 1, f + 2, f + 3, f + 4, f + 5, f + 6, f + 7, f + 8],
        [f + 9, p, END, END, END, END, END, END],
    ]
    assert read["segment"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 2], [0] * 8, [0, 0, 0, 1, 1, 1, 1, 1]]
    assert read["label"].tolist() == [
        [a + 1, a + 2, END, -1, d + 1, END, -1],
        [f + 2, f + 3, f + 4, f + 5, f + 6, f + 7, f + 8],
        [p, END, -1, -1, -1, -1, -1],
    ]
    assert {name: (values.dtype.str, values.flags.c_contiguous) for name, values in read.items()} == {
        "input": ("<i4", True),
        "segment": ("<u2", True),
        "label": ("<i4", True),
    }
    assert (source.classes, source.class_names, source.name) == (257, (), "a.txt")
    again = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(again["input"], read["input"][[2, 0]])
    with pytest.raises(UsageError, match="ids 3 to 3; it has 0 to 2"):
        source.read(np.array([3]))


documents = st.lists(st.lists(st.integers(0, 90), min_size=0, max_size=30), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(documents, st.integers(2, 17))
def test_packing_keeps_every_token_and_every_boundary(parts: list[list[int]], length: int) -> None:
    arrays = [np.array(part, dtype=np.int32) for part in parts]
    if max(map(len, parts)) < 2:
        with pytest.raises(SourceError, match=r"tokens in all|is one token"):
            concatenate(arrays, None, causal=True, place="here")
        return
    packing = Packing(*concatenate(arrays, None, causal=True, place="here"), length, pad=99)
    rows = packing.rows(np.arange(len(packing)))
    flat = [(token, number) for number, part in enumerate(p for p in parts if p) for token in part]
    tokens, owners = rows["input"].reshape(-1), [number for _, number in flat]
    assert tokens[: len(flat)].tolist() == [token for token, _ in flat]
    assert set(tokens[len(flat) :].tolist()) <= {99}
    assert len(packing) * length - len(flat) < length
    owners += [len(parts)] * (len(tokens) - len(owners))
    for row, (segment, label) in enumerate(zip(rows["segment"], rows["label"], strict=True)):
        own = owners[row * length : (row + 1) * length]
        changes = [int(a != b) for a, b in itertools.pairwise(own)]
        assert segment.tolist() == np.cumsum([0, *changes]).tolist()
        following = tokens[row * length + 1 : (row + 1) * length]
        unscored = [changed or number == len(parts) for changed, number in zip(changes, own[1:], strict=True)]
        assert label.tolist() == [-1 if no else token for token, no in zip(following, unscored, strict=True)]


def test_a_document_of_one_token_is_a_segment_that_is_never_scored() -> None:
    found = concatenate([np.array(d, np.int32) for d in ([1, 2], [3], [4, 5])], None, causal=True, place="here")
    row = Packing(*found, 5, 0).rows(np.array([0]))
    assert row["segment"].tolist() == [[0, 0, 1, 2, 2]]
    assert row["label"].tolist() == [[2, -1, -1, 5]]


def test_prompts_are_read_and_not_scored(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "response": "cd"}, {"text": "xyz"}]
    path = written(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n", "a.jsonl")
    read = opened(path, length=9).read(np.array([0]))
    assert read["input"][0].tolist() == [*b"abcd", END, *b"xyz", END]
    assert read["label"][0].tolist() == [-1, *b"cd", END, -1, *b"yz", END]
    masked = opened(path, length=9, masked=0.999999).read(np.array([0]))
    assert masked["label"][0].tolist() == [-1, -1, *b"cd", -1, *b"xyz", -1]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", ["a b\nc\n \n\nd\n"]),
        ("line", ["a b", "c", "d"]),
        ("paragraph", ["a b\nc", "d\n"]),
        (" ", ["a", "b\nc\n", "\n\nd\n"]),
    ],
)
def test_how_documents_are_cut(tmp_path: Path, document: str, expected: list[str]) -> None:
    path = written(tmp_path, "a b\nc\n \n\nd\n")
    assert read_documents(Part(path), document) == [Document(text) for text in expected if text.strip()]
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_documents(Part(packed), document) == read_documents(Part(path), document)


def test_parts_of_a_file_meet_at_a_blank_line(tmp_path: Path) -> None:
    path = written(tmp_path, "aaaa\n\nbbbb\n\ncccc\n\ndddd")
    whole = path.read_text()
    for share in (0.1, 0.3, 0.5, 0.7):
        first, second = (read_documents(part, "file") for part in (Part(path, 0, share), Part(path, share, 1)))
        assert first[0].text + second[0].text == whole
        assert first[0].text.endswith("\n\n")


# masked language models


def test_masking_has_the_shares_that_it_states(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) for i in range(200_000))
    source = opened(written(tmp_path, text), masked=0.15, length=100, seed=3)
    assert source.classes == 258
    assert source.arrays["label"].shape == (100,)
    read, plain = source.read(source.ids()), opened(tmp_path / "a.txt", length=100)
    tokens = plain.read(plain.ids())["input"]
    chosen = read["label"] >= 0
    np.testing.assert_array_equal(read["label"][chosen], tokens[chosen])
    np.testing.assert_array_equal(read["input"][~chosen], tokens[~chosen])
    count, total = int(chosen.sum()), 200_000
    assert abs(count / total - 0.15) < 5 * (0.15 * 0.85 / total) ** 0.5
    hidden = read["input"][chosen] == 257
    kept = read["input"][chosen] == tokens[chosen]
    for found, share in ((hidden.sum(), 0.8), (kept.sum(), 0.1 + 0.1 / 256)):
        assert abs(found / count - share) < 5 * (share * (1 - share) / count) ** 0.5
    others = read["input"][chosen][~hidden & ~kept]
    assert others.max() < 256, "an ordinary token stands in, never a special one"
    assert len(np.unique(others)) > 250


def test_masking_depends_on_seed_and_row_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "lorem ipsum dolor " * 40)
    source, same, other = (opened(path, masked=0.3, seed=seed) for seed in (1, 1, 2))
    whole = source.read(source.ids())
    one = same.read(np.array([7]))
    for name in ("input", "label"):
        np.testing.assert_array_equal(one[name][0], whole[name][7])
    assert source.fingerprint() == same.fingerprint() != other.fingerprint()


def test_special_tokens_and_padding_are_never_masked(tmp_path: Path) -> None:
    source = opened(written(tmp_path, "ab\ncd\nefg"), document="line", masked=0.999999, length=16)
    label = source.read(np.array([0]))["label"][0]
    assert label.tolist() == [*b"ab", -1, *b"cd", -1, *b"efg", *[-1] * 7]


# token ids


def test_token_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.arange(7, dtype=np.uint16))
    np.save(tmp_path / "rows.npy", np.arange(6, dtype=np.int64).reshape(2, 3))
    flat = opened(tmp_path / "flat.npy", tokenizer=None, length=4)
    assert flat.read(flat.ids())["input"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert flat.classes == 7
    assert flat.extra["tokenizer"] == {"vocabulary": None, "size": 7, "special_tokens": {}, "chat_template": None}
    rows = opened(tmp_path / "rows.npy", tokenizer=None, length=6, classes=90)
    assert rows.read(rows.ids())["segment"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert rows.classes == 90
    named = opened(tmp_path / "flat.npy", length=4)
    assert named.classes == 257


@pytest.mark.parametrize(
    ("values", "keys", "said"),
    [
        (np.array([0, 5, 2]), {"classes": 5}, r"token 1 is 5; the vocabulary has 0 to 4"),
        (np.array([0, -1, 2]), {}, "token 1 is -1; the vocabulary has 0 to"),
        (np.array([0, 300]), {"tokenizer": "bytes"}, "token 1 is 300; the vocabulary has 0 to 256"),
        (np.array([0.5, 1.0]), {}, "token ids are whole numbers .* found float64"),
        (np.zeros((2, 2, 2), int), {}, r"found int64 of shape \[2, 2, 2\]"),
        (np.array([3]), {}, "1 tokens in all; a language model needs at least 2"),
    ],
)
def test_token_ids_that_cannot_be(tmp_path: Path, values: np.ndarray, keys: dict[str, object], said: str) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(SourceError, match=said):
        opened(tmp_path / "x.npy", **{"tokenizer": None, **keys})


# what is refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"holds no text \(0 bytes\)"),
        (b" \n\n ", r"holds no text \(4 bytes\)"),
        (b"caf\xe9", r"byte 3 \(0xe9\) is not UTF-8; convert"),
        (b"\x1f\x8b\x08broken", "damaged or cut short while unpacking"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SourceError, match=said):
        opened(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"a.jsonl: line 2: is not JSON"),
        ("[]", r"line 2: needs `text`, or `prompt` and `response`, as strings; it has list"),
        ('{"prompt": "a"}', r"it has \['prompt'\]"),
        ('{"text": 3}', r"it has \['text'\]"),
    ],
)
def test_jsonl_that_cannot_be_read(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        opened(written(tmp_path, '{"text": "a"}\n' + line, "a.jsonl"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"length": 1}, "length = 1: a row holds 2 to 65535 tokens"),
        ({"length": 65536}, "length = 65536"),
        ({"tokenizer": None}, "needs `tokenizer` .* or `vocabulary`"),
        ({"vocabulary": 300}, "`vocabulary` is for a tokenizer that is trained here"),
        ({"tokenizer": None, "vocabulary": 256}, "vocabulary = 256: .* at least 257"),
        ({"labelled": 3}, "in text every token has its own"),
        ({"images": "x"}, '`images` is not for kind = "text"'),
        ({"files": []}, 'kind = "text" needs `files`'),
        ({"rows": 1000}, "rows = 1000 is more than the"),
    ],
)
def test_tables_that_cannot_work(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        opened(written(tmp_path, "some text of some length"), **keys)


def test_text_and_token_ids_do_not_mix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    with pytest.raises(UsageError, match=r"mixes token ids \(x.npy\) with text"):
        opened(tmp_path / "x.npy", files=[tmp_path / "x.npy", written(tmp_path, "abc")])
    with pytest.raises(UsageError, match=r"are for text, not for .npy token ids"):
        opened(tmp_path / "x.npy", document="line")


def test_lines_of_jsonl_are_documents(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"every line of a .jsonl is a document; leave out `document`"):
        opened(written(tmp_path, '{"text": "ab"}', "a.jsonl"), document="line")


def test_documents_of_one_token_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4).reshape(4, 1))
    with pytest.raises(SourceError, match="each of its 4 documents is one token"):
        opened(tmp_path / "x.npy", tokenizer=None)


# the known sets


@pytest.mark.parametrize("name", ["tiny-shakespeare", "wikitext-2"])
def test_known_text(data_root: Path, name: str) -> None:
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} in {data_root}: `kdcache data get {name}`")
    sources = {}
    for split in ("train", "test"):
        config = SourceConfig(dataset=name, split=split, tokenizer="bytes", length=256)
        sources[split] = open_source(config)
    sizes = {split: len(source) * 256 for split, source in sources.items()}
    if name == "tiny-shakespeare":
        assert 0.899 < sizes["train"] / (sizes["train"] + sizes["test"]) < 0.902
        text = (data_root / name / "input.txt").read_bytes()
        tokens = [source.read(source.ids()) for source in sources.values()]
        real = [read["input"][read["segment"] == 0] for read in tokens]
        assert b"".join(bytes(part[part < END].astype(np.uint8)) for part in real) == text
    else:
        assert sizes["train"] // 256 == -(-(1_121_681 + 1) // 256)
    assert sources["train"].fingerprint() != sources["test"].fingerprint()
    with pytest.raises(UsageError, match="`label` is not for dataset of text, which takes document, length"):
        open_source(SourceConfig(dataset=name, label="coarse"))


def test_rows_are_drawn_and_the_tokenizer_stays(tmp_path: Path) -> None:
    path = written(tmp_path, "some words " * 30)
    few = open_source(SourceConfig(kind="text", files=(path,), tokenizer="bytes", length=8, rows=5))
    whole = opened(path)
    assert len(few) == 5
    assert few.extra == whole.extra  # type: ignore[attr-defined]
    np.testing.assert_array_equal(few.read(few.ids())["label"], whole.read(few.ids())["label"])
