"""Text to token ids: UTF-8 bytes as they are, a `tokenizer.json`, or a byte-level BPE trained here.

The vocabulary's identity is a digest of its tokens in the order of their ids, with the special tokens and the chat
template beside it: two stores, or a teacher and a student, that agree in it mean the same thing by an id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import MissingExtra, SourceError, UsageError
from kdcache.fingerprint import canonical, sha256

__all__ = ["Tokenizer", "bytes_tokenizer", "check_same_vocabulary", "open_tokenizer", "train_tokenizer"]

END, MASK = "<|endoftext|>", "<|mask|>"
# Names under which tokenizers of the hub keep the token that ends a document, and the one that hides a word.
_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_MASKS = (MASK, "[MASK]", "<mask>")
# And those that fill a row up, and that come before a sequence.
_PADS = ("[PAD]", "<pad>")
_STARTS = ("[CLS]", "<s>", "<cls>")
# BERT's special tokens (Devlin et al. 2019) with [PAD] as 0, which is what networks take padding to be.
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SMALLEST = 256
_LARGEST = 1 << 20  # several times the largest vocabulary in use
_BATCH = 1024


class _Encode(Protocol):
    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int32]]: ...


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """`encode` gives int32 ids of each text.

    `end` comes after a document, `mask` hides a token, `start` comes before a sequence, `pad` fills a row up; each may
    lack.
    """

    name: str
    size: int
    encode: _Encode
    end: int | None
    mask: int | None
    special: Mapping[str, int] = field(default_factory=dict)
    vocabulary: str | None = None
    chat_template: str | None = None
    start: int | None = None
    pad: int | None = None

    @property
    def ordinary(self) -> NDArray[np.int32]:
        """The ids that are no special token, int32 ascending."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int32), np.array([*self.special.values()], np.int32))

    def fingerprint(self) -> dict[str, Any]:
        """What a plan keeps of it: `vocabulary` (SHA-256), `size`, `special_tokens`, `chat_template` (SHA-256)."""
        template = self.chat_template
        return {
            "vocabulary": self.vocabulary,
            "size": self.size,
            "special_tokens": dict(sorted(self.special.items())),
            "chat_template": None if template is None else sha256([template.encode()]),
        }


def bytes_tokenizer(masked: bool = False, *, bert: bool = False) -> Tokenizer:
    """The 256 bytes of UTF-8 and a token that ends a document, 256; with `masked` one that hides a token, 257.

    With `bert`, BERT's five special tokens are 0 to 4 and the bytes follow, byte b as b + 5.
    """
    if bert:
        special = {token: number for number, token in enumerate(BERT)}
        tokens = special | {f"<0x{byte:02X}>": byte + len(BERT) for byte in range(256)}
        return Tokenizer(
            "bytes",
            len(tokens),
            _bytes_after_special,
            special["[SEP]"],
            special["[MASK]"],
            special,
            _vocabulary_digest(tokens, len(tokens)),
            None,
            special["[CLS]"],
            special["[PAD]"],
        )
    special = {END: 256, **({MASK: 257} if masked else {})}
    tokens = {f"<0x{byte:02X}>": byte for byte in range(256)} | special
    return Tokenizer(
        "bytes", len(tokens), _bytes, 256, special.get(MASK), special, _vocabulary_digest(tokens, len(tokens))
    )


def open_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json` of the Hugging Face tokenizers library, or the folder that holds it.

    In a folder, tokenizer_config.json names the end and mask tokens and the chat template; without it they are found
    by their usual names. Raises MissingExtra, SourceError.
    """
    library = _library("tokenizers that are read from a file")
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SourceError(
            f'{file}: no such file; `tokenizer` is a tokenizer.json, the folder that holds one, or "bytes"'
        )
    try:
        found = library.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise SourceError(f"{file}: not a tokenizer.json that the tokenizers library reads ({error})") from error
    found.no_padding()
    found.no_truncation()
    settings = _settings(path / "tokenizer_config.json") if path.is_dir() else {}
    template = _template(path, settings)
    return _wrapped(path.name, found, settings, template, place=str(file))


def train_tokenizer(texts: Iterable[str], vocabulary: int, *, masked: bool = False, bert: bool = False) -> Tokenizer:
    """A byte-level BPE (Radford et al. 2019, section 2.2) of at most `vocabulary` tokens, special ones among them.

    The special tokens are the first: one that ends a document and, with `masked`, one that hides a token; or, with
    `bert`, BERT's five, so that one vocabulary serves masked language models and classifiers.
    The same texts give the same tokenizer in every process, with however many threads. Raises MissingExtra, UsageError.
    """
    library = _library("a tokenizer that is trained from files")
    special = [*BERT] if bert else [END, MASK] if masked else [END]
    if vocabulary < _SMALLEST + len(special):
        raise UsageError(
            f"[source] vocabulary = {vocabulary}: a byte-level vocabulary has {_SMALLEST} bytes and {len(special)} "
            f"special tokens, so at least {_SMALLEST + len(special)}"
        )
    if vocabulary > _LARGEST:  # the library asks for the memory at once, and its process dies
        raise UsageError(f"[source] vocabulary = {vocabulary}: at most {_LARGEST} tokens are trained here")
    level = library.pre_tokenizers.ByteLevel
    found = library.Tokenizer(library.models.BPE())
    found.pre_tokenizer = level(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=sorted(level.alphabet()), show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True))
    settings = names if bert else {"eos_token": END, "mask_token": MASK if masked else None}
    return _wrapped(f"bpe-{vocabulary}", found, settings, None, place="the trained tokenizer")


def check_same_vocabulary(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, place: str, other: str
) -> None:
    """UsageError, naming both, unless two plans' `tokenizer` entries (None: no text) mean the same by an id."""
    keys = ("vocabulary", "size")
    first, second = ({key: (entry or {}).get(key) for key in keys} for entry in (ours, theirs))
    if first != second:
        told = [f"{str(entry['vocabulary'])[:16]} of {entry['size']} tokens" for entry in (first, second)]
        raise UsageError(
            f"{place} has the vocabulary {told[0]}, {other} has {told[1]}: an id does not mean the same in both; "
            "use one tokenizer for both"
        )


def _bytes(texts: Sequence[str]) -> list[NDArray[np.int32]]:
    return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]


def _bytes_after_special(texts: Sequence[str]) -> list[NDArray[np.int32]]:
    return [ids + np.int32(len(BERT)) for ids in _bytes(texts)]


def _library(purpose: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "text", purpose) from error
    return tokenizers


def _wrapped(name: str, found: Any, settings: Mapping[str, Any], template: str | None, *, place: str) -> Tokenizer:
    tokens: dict[str, int] = found.get_vocab(with_added_tokens=True)
    size = max(tokens.values(), default=-1) + 1
    if size < 2:
        raise SourceError(f"{place}: its vocabulary has {size} tokens; a language model needs at least 2")
    special = {str(t.content): int(i) for i, t in found.get_added_tokens_decoder().items() if t.special}

    def encode(texts: Sequence[str]) -> list[NDArray[np.int32]]:
        ids: list[NDArray[np.int32]] = []
        for first in range(0, len(texts), _BATCH):
            some = found.encode_batch(list(texts[first : first + _BATCH]), add_special_tokens=False)
            ids += [np.array(one.ids, dtype=np.int32) for one in some]
        return ids

    return Tokenizer(
        name,
        size,
        encode,
        _special(tokens, settings.get("eos_token"), _ENDS),
        _special(tokens, settings.get("mask_token"), _MASKS),
        special,
        _vocabulary_digest(tokens, size),
        template,
        _special(tokens, settings.get("cls_token"), _STARTS),
        _special(tokens, settings.get("pad_token"), _PADS),
    )


def _special(tokens: Mapping[str, int], named: object, usual: Sequence[str]) -> int | None:
    """The id of a token that a configuration names, as text or as {"content": text}; else of the first usual one."""
    text = named.get("content") if isinstance(named, Mapping) else named
    return next((tokens[name] for name in (text, *usual) if isinstance(name, str) and name in tokens), None)


def _vocabulary_digest(tokens: Mapping[str, int], size: int) -> str:
    """SHA-256 of the tokens in the order of their ids, null where an id has none."""
    by_id: list[str | None] = [None] * size
    for token, number in tokens.items():
        by_id[number] = token
    return sha256([canonical(by_id)])


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: is no JSON object; it should hold the tokenizer's settings")
    return found


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template as text, from a file of its own or the settings; several named ones as canonical JSON."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SourceError(f"{own}: cannot be read as UTF-8 text ({error})") from error
    value = settings.get("chat_template")
    return value if value is None or isinstance(value, str) else canonical(value).decode()
