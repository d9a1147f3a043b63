"""Tokenizers: bytes, a file or folder, one trained here; their fingerprints; what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import MissingExtra, SourceError, UsageError
from kdcache.sources.tokenizer import (
    Tokenizer,
    bytes_tokenizer,
    check_same_vocabulary,
    open_tokenizer,
    train_tokenizer,
)

WORDS = ["the cat sat on the mat, the other cat did not", "the dog sat on the log — naïve", "catalogue of dogs"] * 5


def saved(path: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> Path:
    """A small tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(WORDS, trainer)
    found.enable_truncation(3)
    found.enable_padding(length=9)
    found.save(str(path))
    return path


def test_bytes() -> None:
    plain, masked = bytes_tokenizer(), bytes_tokenizer(masked=True)
    assert plain.encode(["aé", ""])[0].tolist() == [97, 0xC3, 0xA9]
    assert [ids.dtype for ids in plain.encode(["a", ""])] == [np.int32, np.int32]
    assert (plain.size, plain.end, plain.mask) == (257, 256, None)
    assert (masked.size, masked.end, masked.mask) == (258, 256, 257)
    assert plain.ordinary.tolist() == list(range(256)) == masked.ordinary.tolist()
    assert plain.vocabulary != masked.vocabulary
    assert plain.fingerprint() == {
        "vocabulary": plain.vocabulary,
        "size": 257,
        "special_tokens": {"<|endoftext|>": 256},
        "chat_template": None,
    }


def test_a_file_and_its_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "tokenizer.json")
    found = open_tokenizer(path)
    assert found.size == 290
    assert found.end == found.special["<|endoftext|>"] == 0
    texts = ["the cat", "a very long text that would be cut to three tokens"]
    ids = found.encode(texts)
    assert len(ids[1]) > 3, "what the file says of truncation and padding is not for a corpus"
    assert len(ids[0]) < 7
    folder = open_tokenizer(tmp_path)
    assert folder.fingerprint() == found.fingerprint()
    settings = {"eos_token": {"content": "the"}, "mask_token": "cat", "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    named = open_tokenizer(tmp_path)
    assert named.end == named.encode(["the"])[0].item()
    assert named.fingerprint()["chat_template"] is not None
    assert named.vocabulary == found.vocabulary
    (tmp_path / "chat_template.jinja").write_text("{{ other }}")
    assert open_tokenizer(tmp_path).chat_template == "{{ other }}"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such file"), ("", "not a tokenizer.json"), ("{}", "not a tokenizer.json")]
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: str | None, said: str) -> None:
    pytest.importorskip("tokenizers")
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(SourceError, match=said):
            open_tokenizer(path)


def test_a_trained_tokenizer_encodes_every_text() -> None:
    pytest.importorskip("tokenizers")
    found = train_tokenizer(WORDS, 280)
    assert found.size == 280
    assert found.end == 0
    assert len(found.encode(["the cat"])[0]) < 7, "it has learned words"
    assert found.encode(["日本 \x00"])[0].min() > 0, "bytes that it never saw are tokens too"
    masked = train_tokenizer(WORDS, 280, masked=True)
    assert masked.mask == 1
    assert masked.vocabulary != found.vocabulary


def test_training_is_the_same_in_every_process() -> None:
    pytest.importorskip("tokenizers")
    code = (
        "from test_sources_text_tokenizer import WORDS\n"
        "from kdcache.sources.tokenizer import train_tokenizer\n"
        "text = [f'{a}{b} {b}{a}' for a in WORDS for b in WORDS]\n"
        "print(train_tokenizer(text, 400).vocabulary)"
    )
    found = set()
    for threads in ("1", "4", "4"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env={"RAYON_NUM_THREADS": threads, "PATH": "", "TOKENIZERS_PARALLELISM": "true"},
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 64


@pytest.mark.parametrize("vocabulary", [3, 10**9])
def test_a_vocabulary_of_no_size_is_refused(vocabulary: int) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(UsageError, match=rf"vocabulary = {vocabulary}: .*at (least 257|most 1048576)"):
        train_tokenizer(WORDS, vocabulary)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for attempt in (lambda: open_tokenizer(tmp_path), lambda: train_tokenizer(WORDS, 300)):
        with pytest.raises(
            MissingExtra, match=r"needs tokenizers, which is not installed: run `pip install 'kdcache\["
        ):
            attempt()
    assert bytes_tokenizer().size == 257


def test_another_vocabulary_is_refused() -> None:
    ours, theirs = bytes_tokenizer().fingerprint(), bytes_tokenizer(masked=True).fingerprint()
    check_same_vocabulary(ours, dict(ours, chat_template="ab" * 32), "a", "b")
    check_same_vocabulary(None, None, "a", "b")
    for other in (theirs, None):
        with pytest.raises(UsageError, match=r"store a has the vocabulary [0-9a-f]{16} of 257 tokens, store b has"):
            check_same_vocabulary(ours, other, "store a", "store b")


def test_ids_without_text() -> None:
    ids = Tokenizer("x", 5, bytes_tokenizer().encode, None, None, {"<s>": 3})
    assert ids.ordinary.tolist() == [0, 1, 2, 4]


def test_berts_special_tokens_come_first() -> None:
    pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for found in (bytes_tokenizer(bert=True), train_tokenizer(WORDS, 300, bert=True)):
        assert [found.special[name] for name in names] == [0, 1, 2, 3, 4]
        assert (found.pad, found.start, found.end, found.mask) == (0, 2, 3, 4)
        assert found.ordinary[0] == 5
        assert found.encode(["the cat é"])[0].min() >= 5
    plain = bytes_tokenizer(bert=True)
    assert plain.size == 261
    assert plain.encode(["aé"])[0].tolist() == [97 + 5, 0xC3 + 5, 0xA9 + 5]
    with pytest.raises(UsageError, match="256 bytes and 5 special tokens, so at least 261"):
        train_tokenizer(WORDS, 260, bert=True)


def test_pad_and_start_of_a_file(tmp_path: Path) -> None:
    special = ("<pad>", "<s>", "</s>", "<|endoftext|>")
    found = open_tokenizer(saved(tmp_path / "tokenizer.json", special))
    assert (found.pad, found.start, found.end) == (0, 1, 3)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>", "cls_token": None}))
    named = open_tokenizer(tmp_path)
    assert (named.pad, named.start) == (2, 1)
    plain = train_tokenizer(WORDS, 280)
    assert (plain.pad, plain.start) == (None, None)
