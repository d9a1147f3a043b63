"""Language-model teachers: what is stored at a position, in chunks of the head, and everything that can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_recipes import find_modules, write_recipe
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.arrays import Array
from kdcache.config import SourceConfig, TeacherConfig
from kdcache.errors import TeacherError, UsageError
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.recipe_file import load_recipe
from kdcache.sources import open_source
from kdcache.store import describe, open_store
from kdcache.teacher import dump, estimate, heads
from kdcache.teacher.batch import run_ids, token_chunks
from kdcache.teacher.frozen import FrozenTeacher, load_teacher
from kdcache.teacher.pilot import pilot

LENGTH = 12
END = 256
TEXT = "\n\n".join(f"{'the quick brown fox ' * (i % 4)}jumps over {i} lazy dogs" for i in range(40))


class Follower(nn.Module):
    """Knows that after token i comes (5 i + 3) mod V: its state is the token's one-hot, its head a shifted identity."""

    causal = True

    def __init__(self, vocabulary: int, **habits: Any) -> None:
        super().__init__()
        self.head = nn.Linear(vocabulary, vocabulary, bias=False)
        self.stem = nn.Identity()
        with torch.no_grad():
            following = (torch.arange(vocabulary) * 5 + 3) % vocabulary
            self.head.weight.zero_()[following, torch.arange(vocabulary)] = 10.0
        self.huge_for: int | None = habits.get("huge_for")
        self.nan_for: int | None = habits.get("nan_for")
        self.raise_for: int | None = habits.get("raise_for")
        self.most: int = habits.get("most", 1 << 30)

    def hidden(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        if len(tokens) > self.most:
            raise torch.OutOfMemoryError(f"a batch of {len(tokens)} does not fit")
        if self.raise_for is not None and (tokens == self.raise_for).any():
            raise RuntimeError("cannot read this")
        states = nn.functional.one_hot(tokens, self.head.in_features).float()
        if self.nan_for is not None:
            states = states.masked_fill((tokens == self.nan_for)[..., None], math.nan)
        if self.huge_for is not None:  # finite here, infinite after the head
            states = states.where((tokens != self.huge_for)[..., None], states * 3e38)
        return self.stem(states)

    def forward(self, tokens: Tensor, segment: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(tokens, segment))


def follower(input_shape: tuple[int, ...], num_classes: int, **habits: Any) -> nn.Module:
    return Follower(num_classes, **habits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    find_modules()
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def recipe_of(folder: Path, teacher: str, fields: str = "", *, keys: str = "", name: str = "recipe") -> Any:
    source = (
        f'[source]\nkind = "text"\nfiles = ["text.txt"]\ntokenizer = "bytes"\nlength = {LENGTH}\n'
        f'document = "paragraph"\n{keys}'
    )
    return load_recipe(write_recipe(folder, source=source, teacher=teacher, fields=fields, name=name))


FP32 = '[fields.logits]\ncodec = "dense"\ndtype = "float32"\n'
GPT = 'model = "zoo:gpt"\nargs = { width = 16, layers = 2, heads = 2 }\n'
FOLLOWER = 'model = "test_teacher_language:follower"\nargs = { %s }\n'


def gpt_weights(folder: Path, vocabulary: int = 257) -> tuple[str, nn.Module]:
    """A recipe's teacher with weights of its own, and the network."""
    torch.manual_seed(0)
    args = {"width": 16, "layers": 2, "heads": 2}
    model = build_model("zoo:gpt", args, input=Array("int32", (LENGTH,)), outputs=vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    save_weights(folder / "gpt.safetensors", model, WeightsInfo("zoo:gpt", args, Array("int32", (LENGTH,)), vocabulary))
    return GPT + 'weights = "gpt.safetensors"\n', model.eval()


def test_logits_at_t_are_for_token_t_plus_1(folder: Path) -> None:
    chain = [7]
    while len(chain) < 100:
        chain.append((chain[-1] * 5 + 3) % 257)
    np.save(folder / "chain.npy", np.array(chain))
    source = f'[source]\nkind = "text"\nfiles = ["chain.npy"]\ntokenizer = "bytes"\nlength = {LENGTH}\n'
    recipe = load_recipe(write_recipe(folder, source=source, teacher=FOLLOWER % "", fields=FP32))
    dump(recipe, folder / "store")
    with open_store(folder / "store") as store:
        label, logits, tokens = (store.read_column(name) for name in ("label", "logits", "input"))
    assert logits.shape == (9, LENGTH - 1, 257)
    scored = label >= 0
    assert scored.sum() == 100 - 9, "every token but the first of each row"
    np.testing.assert_array_equal(logits.argmax(2)[scored], label[scored])
    np.testing.assert_array_equal(logits.argmax(2), (tokens[:, :-1].astype(int) * 5 + 3) % 257)
    assert set(np.unique(logits)) == {0.0, 10.0}


def test_the_store_holds_what_the_network_says_of_each_document_alone(folder: Path) -> None:
    teacher, model = gpt_weights(folder)
    dump(recipe_of(folder, teacher + 'taps = { "features.block" = "blocks.1" }', FP32), folder / "store")
    with open_store(folder / "store") as store:
        read = {name: store.read_column(name) for name in ("input", "segment", "label", "logits", "features.block")}
        assert store.plan.source["tokenizer"]["size"] == store.plan.classes == 257
        assert store.plan.input_statistics is None
        assert store.fields["logits"].array == Array("float32", (LENGTH - 1, 257))
    assert read["segment"].max() > 0, "rows hold several documents"
    assert read["features.block"].shape[1:] == (LENGTH, 16)
    for row in range(0, len(read["input"]), 7):
        tokens, segment = (torch.from_numpy(read[name][row].astype(np.int64)) for name in ("input", "segment"))
        alone = torch.cat([model(tokens[None, segment == number])[0] for number in segment.unique()])
        torch.testing.assert_close(torch.from_numpy(read["logits"][row]), alone[:-1], atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return found


def test_the_logits_of_a_batch_are_never_all_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, chunk = 5000, 1 << 20
    np.save(folder / "ids.npy", np.arange(32 * 64) % vocabulary)
    source = f'[source]\nkind = "text"\nfiles = ["ids.npy"]\nclasses = {vocabulary}\nlength = 64\n'
    topk = '[fields.logits]\ncodec = "topk"\nk = 4\n'
    recipe = load_recipe(write_recipe(folder, source=source, teacher=GPT + "\nprecision = 'fp16'", fields=topk))
    monkeypatch.setattr(heads, "CHUNK_BYTES", chunk)
    with Largest() as largest:
        dump(recipe, folder / "store")
    whole = 24 * 63 * vocabulary * 4
    assert largest.bytes <= 4 * chunk < whole / 7, "a codec may widen a chunk, nothing else is near its size"
    assert largest.bytes >= chunk // 2
    with open_store(folder / "store") as store:
        assert store.read_column("logits.indices").shape[:2] == (32, 63)


def test_chunks_are_bounded_for_any_vocabulary() -> None:
    for vocabulary in (2, 257, 32_000, 128_256):
        head = heads.Head(nn.Linear(4, vocabulary, device="meta"), None, None)
        assert head.rows * vocabulary * 4 <= 64 << 20
    rows = [last - first for first, last, _ in heads.Head(nn.Linear(4, 1 << 20), None, None).chunks(torch.rand(37, 4))]
    assert rows == [16, 16, 5]


def test_bytes_do_not_depend_on_the_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for rows in (50, 1000):
        monkeypatch.setattr(heads, "CHUNK_BYTES", rows * 257 * 4)
        dump(recipe_of(folder, FOLLOWER % "", '[fields.logits]\ncodec = "topk"\nk = 4'), folder / str(rows))
        digests.add(tuple(sorted(file.name for file in (folder / str(rows) / "data").iterdir())))
    assert len(digests) == 1


def test_keys_are_of_the_sample_and_the_position(folder: Path) -> None:
    from kdcache.store import StoredField
    from kdcache.teacher.unit import _pieces

    teacher, _ = gpt_weights(folder)
    recipe = recipe_of(folder, teacher)
    source = open_source(recipe.source)
    frozen = load_teacher(recipe.teacher, source.arrays, source.classes, InputSpec())
    ids = source.ids()[[5, 3]]
    field = StoredField("logits", Array("float32", (LENGTH - 1, 257)), "dense", {"dtype": "float32"}, {})
    pieces = list(_pieces(field, 0, run_ids(frozen, source, ids), frozen, ids))
    keys = torch.cat([keys for *_, keys in pieces])
    assert keys.tolist() == [row * (LENGTH - 1) + t for row in (5, 3) for t in range(LENGTH - 1)]
    for targets in (LENGTH, LENGTH - 2):
        other = StoredField("logits", Array("float32", (targets, 257)), "dense", {"dtype": "float32"}, {})
        with pytest.raises(UsageError, match=rf"gives {LENGTH - 1} targets a row, the store holds exactly {targets}"):
            next(_pieces(other, 0, run_ids(frozen, source, ids), frozen, ids))


def test_the_pilot_is_of_scored_positions(folder: Path) -> None:
    teacher, model = gpt_weights(folder)
    recipe = recipe_of(folder, teacher)
    source = open_source(recipe.source)
    frozen = load_teacher(recipe.teacher, source.arrays, source.classes, InputSpec())
    found, keys = pilot(source, frozen, source.ids(), 24, ["logits"], rows=300)
    values = found["logits"]
    assert values.shape == (len(keys), 257)
    assert 200 < len(keys) <= 300
    assert len(keys.unique()) == len(keys)
    rows, places = keys // (LENGTH - 1), keys % (LENGTH - 1)
    read = {name: torch.from_numpy(array.astype(np.int64)) for name, array in source.read(rows.numpy()).items()}
    label = read["label"].gather(1, places[:, None])[:, 0]
    unscored = (read["label"] >= 0).sum(1) == 0
    assert ((label >= 0) | unscored).all()
    with torch.no_grad():
        whole = model(read["input"], read["segment"])
    torch.testing.assert_close(values, whole[torch.arange(len(keys)), places], atol=1e-4, rtol=1e-4)


def test_a_fitted_codec_and_an_estimate(folder: Path) -> None:
    teacher, _ = gpt_weights(folder)
    recipe = recipe_of(folder, teacher, '[fields.logits]\ncodec = "lowrank"\nbytes = 16\n')
    dump(recipe, folder / "store")
    assert describe(folder / "store")["complete"]
    assert estimate(recipe).field_bytes["logits"] == 16 * (LENGTH - 1)


def test_half_precision_is_near(folder: Path) -> None:
    teacher, _ = gpt_weights(folder)
    found = {}
    for precision in ("fp32", "fp16"):
        recipe = recipe_of(folder, f'{teacher}precision = "{precision}"', FP32, name=precision)
        dump(recipe, folder / precision)
        with open_store(folder / precision) as store:
            found[precision] = store.read_column("logits")
    assert not np.array_equal(found["fp16"], found["fp32"])
    assert np.abs(found["fp16"] - found["fp32"]).max() < 0.01 * np.abs(found["fp32"]).max()


# what fails


def samples_with(recipe: Any, token: int) -> list[int]:
    source = open_source(recipe.source)
    inputs = source.read(source.ids())["input"][:, :-1]
    return np.flatnonzero((inputs == token).any(1)).tolist()


@pytest.mark.parametrize("habit", ["huge_for", "nan_for"])
def test_nan_names_the_samples(folder: Path, habit: str) -> None:
    recipe = recipe_of(folder, FOLLOWER % f"{habit} = {ord('7')}")
    named = samples_with(recipe, ord("7"))
    with pytest.raises(TeacherError, match=r"NaN or infinity for \d+ samples of a batch, ids \[") as error:
        dump(recipe, folder / "store")
    told = json.loads(str(error.value).partition("ids ")[2].partition(", in fp32")[0])
    assert set(told) <= set(named)


def test_a_row_that_makes_the_network_raise_is_found(folder: Path) -> None:
    recipe = recipe_of(folder, FOLLOWER % f"raise_for = {ord('8')}")
    with pytest.raises(TeacherError, match=r"raised RuntimeError for sample \d+: cannot read this") as error:
        dump(recipe, folder / "store")
    assert int(str(error.value).split("sample ")[1].split(":")[0]) in samples_with(recipe, ord("8"))


def test_a_batch_that_does_not_fit_is_halved(folder: Path) -> None:
    for name, habits in (("whole", ""), ("halved", "most = 5")):
        dump(recipe_of(folder, FOLLOWER % habits, FP32, name=name), folder / name)
    with open_store(folder / "whole") as a, open_store(folder / "halved") as b:
        np.testing.assert_array_equal(a.read_column("logits"), b.read_column("logits"))


def test_a_chunk_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    real = heads._linear

    def tight(hidden: Tensor, *weights: Any) -> Tensor:
        if len(hidden) > 3:
            raise torch.OutOfMemoryError("too many")
        return real(hidden, *weights)

    head = heads.Head(nn.Linear(4, 9), None, None)
    hidden = torch.rand(10, 4)
    whole = [values for *_, values in head.chunks(hidden)]
    monkeypatch.setattr(heads, "_linear", tight)
    parts = list(head.chunks(hidden))
    assert [(first, last) for first, last, _ in parts] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    torch.testing.assert_close(torch.cat([values for *_, values in parts]), whole[0])


@pytest.mark.parametrize(
    ("keys", "args", "said"),
    [
        ("masked = 0.2\n", "", r"a causal language model has 11 targets for 12 tokens, .* \[12\] .* leave out"),
        ("", ", causal = false", r"a masked language model has 12 targets for 12 tokens, .* \[11\] .* set \[source\]"),
    ],
)
def test_labels_of_the_other_kind_are_refused(folder: Path, keys: str, args: str, said: str) -> None:
    recipe = recipe_of(folder, GPT.replace(" }", f"{args} }}"), keys=keys)
    with pytest.raises(UsageError, match=said):
        dump(recipe, folder / "store")


def test_a_masked_teacher(folder: Path) -> None:
    recipe = recipe_of(folder, GPT.replace(" }", ", causal = false }"), FP32, keys="masked = 0.2\n")
    dump(recipe, folder / "store")
    with open_store(folder / "store") as store:
        assert store.fields["logits"].array == Array("float32", (LENGTH, 258))
        assert (store.read_column("label") >= 0).any()


def test_averages_over_space_are_for_maps(folder: Path) -> None:
    with pytest.raises(UsageError, match=r'pool = "avg" is for feature maps'):
        dump(recipe_of(folder, GPT + 'pool = "avg"'), folder / "store")
    with pytest.raises(UsageError, match="'head': this module does not run before the head"):
        dump(recipe_of(folder, GPT + 'taps = { "features.x" = "head" }'), folder / "store")


# vocabularies


def test_another_vocabulary_is_refused_and_a_padded_one_is_cut_when_asked(folder: Path) -> None:
    teacher, model = gpt_weights(folder, vocabulary=320)
    with pytest.raises(UsageError, match=r"vocabulary has 320 tokens, the source's has 257; .*vocabulary = \"first\""):
        dump(recipe_of(folder, teacher), folder / "store")
    dump(recipe_of(folder, teacher + 'vocabulary = "first"', FP32), folder / "store")
    with open_store(folder / "store") as store:
        tokens, segment = (torch.from_numpy(store.read_column(n).astype(np.int64)) for n in ("input", "segment"))
        logits = torch.from_numpy(store.read_column("logits"))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens, segment)[:, :-1, :257], atol=1e-4, rtol=1e-4)


def test_weights_of_another_tokenizer_of_the_same_size_are_refused(folder: Path) -> None:
    teacher, model = gpt_weights(folder)
    tokenizer = open_source(recipe_of(folder, teacher).source).extra["tokenizer"]  # type: ignore[attr-defined]
    args = {"width": 16, "layers": 2, "heads": 2}
    for digest, refused in ((tokenizer["vocabulary"], False), ("ab" * 32, True)):
        extra = {"tokenizer": {**tokenizer, "vocabulary": digest}}
        info = WeightsInfo("zoo:gpt", args, Array("int32", (LENGTH,)), 257, extra=extra)
        save_weights(folder / "gpt.safetensors", model, info)
        if refused:
            with pytest.raises(UsageError, match=r"text.txt has the vocabulary .* teacher zoo:gpt has abababab"):
                dump(recipe_of(folder, teacher), folder / "other")
            dump(recipe_of(folder, teacher + 'vocabulary = "first"'), folder / "asked")
        else:
            dump(recipe_of(folder, teacher), folder / "same")


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_map_of_the_vocabulary(folder: Path, suffix: str) -> None:
    teacher, model = gpt_weights(folder, vocabulary=300)
    ids = np.random.default_rng(0).permutation(300)[:257]
    if suffix == ".npy":
        np.save(folder / "map.npy", ids)
    else:
        (folder / "map.json").write_text(json.dumps(ids.tolist()))
    dump(recipe_of(folder, f'{teacher}vocabulary = "map{suffix}"', FP32), folder / "store")
    with open_store(folder / "store") as store:
        tokens, segment = (torch.from_numpy(store.read_column(n).astype(np.int64)) for n in ("input", "segment"))
        logits = torch.from_numpy(store.read_column("logits"))
    with torch.no_grad():
        whole = model(torch.from_numpy(ids)[tokens], segment)
    torch.testing.assert_close(logits, whole[:, :-1, torch.from_numpy(ids)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (list(range(256)), r"holds int64 of shape \[256\]; .* 257 tokens"),
        ([*range(256), 300], "must name 257 different tokens from 0 to 299"),
        ([*range(256), 255], "found 256 different ones"),
        ([*range(256), -1], "from -1 to 255"),
        ([*range(256), 1.5], "no JSON list of whole numbers"),
        ({}, "no JSON list of whole numbers"),
        ("", "no JSON list"),
        (None, r"map.json: the vocabulary map cannot be read \(No such file"),
    ],
)
def test_maps_that_cannot_be(folder: Path, values: object, said: str) -> None:
    teacher, _ = gpt_weights(folder, vocabulary=300)
    if values is not None:
        (folder / "map.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=said):
        dump(recipe_of(folder, teacher + 'vocabulary = "map.json"'), folder / "store")


def test_first_needs_enough_and_tokens() -> None:
    array = Array("float32", (9,))
    with pytest.raises(UsageError, match=r"vocabulary is for language models; the inputs here are float32\[9\]"):
        load_teacher(TeacherConfig(model="zoo:mlp", vocabulary="first"), {"input": array}, 3, InputSpec())
    from kdcache.teacher.vocabulary import vocabulary_map

    with pytest.raises(UsageError, match="has only 5 tokens and the source 6"):
        vocabulary_map("first", 6, 5, "teacher")
    assert vocabulary_map(None, 6, 6, "teacher") is None


def test_the_head_is_named_when_not_even_one_token_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(heads, "_linear", never)
    teacher = FrozenTeacher(Follower(9), InputSpec(), TeacherConfig(model="x:y"), 9)
    with pytest.raises(TeacherError, match="its head does not fit into memory for one token: none left"):
        list(token_chunks(teacher, torch.rand(2, 3, 9), np.arange(2)))


# hf:


def test_a_causal_model_of_transformers_with_its_own_tokenizer(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([TEXT], trainer)
    assert found.get_vocab_size() == 280
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=288, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder / "model")
    found.save(str(folder / "model" / "tokenizer.json"))
    teacher = f'model = "hf:{folder}/model"\n'
    source = (
        f'[source]\nkind = "text"\nfiles = ["text.txt"]\ntokenizer = "model"\nlength = {LENGTH}\ndocument = "paragraph"'
    )
    bare = load_recipe(write_recipe(folder, source=source, teacher=teacher))
    with pytest.raises(UsageError, match=r"model: the teacher's vocabulary has 288 tokens, the source's has 280"):
        dump(bare, folder / "store")
    recipe = load_recipe(write_recipe(folder, source=source, teacher=teacher + 'vocabulary = "first"', fields=FP32))
    dump(recipe, folder / "store")
    with open_store(folder / "store") as store:
        read = {name: store.read_column(name) for name in ("input", "segment", "logits")}
        assert store.plan.source["tokenizer"]["special_tokens"] == {"</s>": 0}
    for row in range(0, len(read["input"]), 5):
        tokens, segment = (torch.from_numpy(read[name][row].astype(np.int64)) for name in ("input", "segment"))
        with torch.no_grad():
            alone = [model(input_ids=tokens[None, segment == number]).logits[0] for number in segment.unique()]
        torch.testing.assert_close(
            torch.from_numpy(read["logits"][row]), torch.cat(alone)[:-1, :280], atol=1e-4, rtol=1e-4
        )


def test_source_config_is_checked_before_any_teacher() -> None:
    with pytest.raises(
        UsageError, match="`document` is not for dataset, which takes channels, facts, label, labels_also"
    ):
        open_source(SourceConfig(dataset="digits", document="line"))
