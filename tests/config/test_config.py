"""The recipe's tables: what each key takes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdcache.config import (
    EarlyStopping,
    FieldConfig,
    InputConfig,
    ObjectiveConfig,
    Recipe,
    SourceConfig,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from kdcache.config.table import Table

DIGITS = {"kind": "digits"}
MLP = {"model": "zoo:mlp"}

# (table, what else it needs, key, values it takes, values it refuses)
KEYS: list[tuple[type[Table], dict[str, Any], str, list[Any], list[Any]]] = [
    (SourceConfig, {}, "kind", ["idx", "cifar", "arrays", "digits", "folder", "python", "text", "tsv", "series",
                                "graph", "voc"], ["IDX", 1, ""]),
    (SourceConfig, {}, "dataset", ["fashion-mnist"], [3, []]),
    (SourceConfig, DIGITS, "split", ["train", "test"], [1]),
    (SourceConfig, DIGITS, "images", ["a.gz"], [5, [1]]),
    (SourceConfig, DIGITS, "labels", ["a.gz"], [5]),
    (SourceConfig, DIGITS, "files", [["a", "b"]], ["a", [1]]),
    (SourceConfig, DIGITS, "label", ["fine", "coarse"], ["super"]),
    (SourceConfig, DIGITS, "path", ["x.npz"], [1]),
    (SourceConfig, DIGITS, "labels_also", [[], ["coarse"], ["fine"]], ["coarse", ["super"]]),
    (SourceConfig, DIGITS, "facts", ["coarse"], ["fine", ["coarse"]]),
    (SourceConfig, DIGITS, "size", [32, [96, 128]], [0, -1, 1.5, "x", [96], [96, 0]]),
    (SourceConfig, DIGITS, "side", [1, 28], [0, -1, 1.5, [28, 28]]),
    (SourceConfig, DIGITS, "channels", [1, 3], [0, 2, 4, "rgb"]),
    (SourceConfig, DIGITS, "input_key", ["x"], [1]),
    (SourceConfig, DIGITS, "label_key", ["y"], [1]),
    (SourceConfig, DIGITS, "text_key", ["sentence"], [1]),
    (SourceConfig, DIGITS, "classes", [1, 1000], [0, -1, 2.5, 2**31]),
    (SourceConfig, DIGITS, "factory", ["a:b"], [1]),
    (SourceConfig, DIGITS, "args", [{"a": [1, {"b": "c"}]}], [[], {"a": float("nan")}, {"a": object()}]),
    (SourceConfig, DIGITS, "tokenizer", ["bytes", "tokenizer.json"], [1, []]),
    (SourceConfig, DIGITS, "vocabulary", [257, 128_256], [0, -1, "big"]),
    (SourceConfig, DIGITS, "tokenizer_files", [[], ["a.txt"]], ["a.txt", [1]]),
    (SourceConfig, DIGITS, "length", [2, 4096], [0, 1.5]),
    (SourceConfig, DIGITS, "document", ["file", "line", "paragraph", "<|end|>"], ["", 3]),
    (SourceConfig, DIGITS, "masked", [0.15], [0, 1, -0.1]),
    (SourceConfig, DIGITS, "special", ["bert"], ["gpt", 1]),
    (SourceConfig, DIGITS, "window", [1, 64], [0, -1, 1.5]),
    (SourceConfig, DIGITS, "stride", [1, 8], [0, -1]),
    (SourceConfig, DIGITS, "horizon", [0, 1, 24], [-1, 0.5, 2**31]),
    (SourceConfig, DIGITS, "parts", [[0.35, 0.6]], [[0.5], [0, 0.5], [0.5, 1], 0.5]),
    (SourceConfig, DIGITS, "probation", [0.15, 1], [0, 1.1, -0.1]),
    (SourceConfig, DIGITS, "boxes", [30], [0, -1, "all"]),
    (SourceConfig, DIGITS, "mask", [True, False], ["perhaps"]),
    (SourceConfig, DIGITS, "mask_size", [24, [24, 32]], [0, [24], [24, -1]]),
    (SourceConfig, DIGITS, "unlabelled", [True, False], ["perhaps"]),
    (SourceConfig, DIGITS, "rows", [1, 10**9], [0, -5, "many", 2**60]),
    (SourceConfig, DIGITS, "labelled", [1], [0, -5, 0.5]),
    (SourceConfig, DIGITS, "seed", [0, 2**63 - 1], [-1, 2**63, "a"]),
    (StoreConfig, {}, "format", ["parquet", "hdf5"], ["csv", "PARQUET", None]),
    (StoreConfig, {}, "compression", ["none", "lz4", "zstd"], ["deflate", "gzip"]),
    (StoreConfig, {"format": "hdf5"}, "compression", ["none", "deflate"], ["lz4", "zstd"]),
    (StoreConfig, {}, "unit_rows", [1024, 4096], [0, -1024, 1000, "8k"]),
    (StoreConfig, {}, "block_rows", [1, 8192], [0, 3, 8193]),
    (StoreConfig, {}, "order", ["shuffled", "source"], ["random"]),
    (StoreConfig, {}, "seed", [0], [-1, 1.5]),
    (InputConfig, {"std": [1.0]}, "mean", [[0.0]], [0.0, ["a"], [float("nan")]]),
    (InputConfig, {"mean": [1.0]}, "std", [[0.5]], [[0.0], [-1.0], 2.0, [float("inf")]]),
    (EarlyStopping, {}, "metric", ["val_loss", "val_accuracy"], ["loss", "test_loss"]),
    (EarlyStopping, {}, "patience", [1], [0, -1]),
    (EarlyStopping, {}, "restore_best", [True, False], ["perhaps"]),
    (TrainConfig, {}, "epochs", [1], [0, -1, 1.5]),
    (TrainConfig, {}, "steps", [1], [0, -1]),
    (TrainConfig, {}, "batch_size", [1], [0, -1, "big"]),
    (TrainConfig, {}, "optimizer", ["sgd", "adam", "adamw"], ["adamax"]),
    (TrainConfig, {}, "lr", [1e-9, 1], [0, -1e-3, float("inf"), float("nan")]),
    (TrainConfig, {}, "momentum", [0, 0.99], [1, -0.1]),
    (TrainConfig, {}, "weight_decay", [0, 1.0], [-1e-4, float("inf")]),
    (TrainConfig, {}, "schedule", ["constant", "cosine", "step", "one_cycle", "warmup"], ["cosin"]),
    (TrainConfig, {}, "warmup", [0, 0.5], [1, -1]),
    (TrainConfig, {}, "milestones", [[0.1, 0.9]], [[1.0], 0.5]),
    (TrainConfig, {}, "gamma", [0.1, 1], [0, 1.1]),
    (TrainConfig, {}, "augment", [[], ["flip", "crop"]], ["flip", ["rotate"]]),
    (TrainConfig, {}, "clip_norm", [1.0], [0, -1]),
    (TrainConfig, {}, "accumulate", [1, 4], [0]),
    (TrainConfig, {}, "precision", ["fp32", "fp16", "bf16"], ["fp64", "tf32"]),
    (TrainConfig, {}, "early_stopping", [{}, {"patience": 3}], [True, {"patients": 3}]),
    (TrainConfig, {}, "holdout", [0, 0.1], [1, -0.1]),
    (TrainConfig, {}, "seeds", [[0], [3, 1]], [[], [1, 1], [-1], [2**63], 0]),
    (TrainConfig, {}, "lanes", [1], [0]),
    (TrainConfig, {}, "memory_mib", [1], [0]),
    (TrainConfig, {}, "checkpoint_seconds", [0, 1.5], [-1]),
    (TeacherConfig, {}, "model", ["zoo:mlp"], [1, None]),
    (TeacherConfig, MLP, "args", [{"hidden": [1]}], [{"x": float("inf")}]),
    (TeacherConfig, MLP, "weights", ["w.safetensors"], [1]),
    (TeacherConfig, MLP, "input", [{"mean": [0.0], "std": [1.0]}], [{"mean": [0.0]}, {"sd": [1.0]}]),
    (TeacherConfig, MLP, "batch_size", [1], [0]),
    (TeacherConfig, MLP, "precision", ["fp32", "fp16", "bf16"], ["int8"]),
    (TeacherConfig, MLP, "fit", [{}, {"epochs": 3}], [{"epoch": 3}, {"epochs": 1, "steps": 1}]),
    (TeacherConfig, MLP, "vocabulary", ["first", "map.json"], [1, [0, 1]]),
    (TeacherConfig, MLP, "taps", [{"features.a": "layers.0"}], [{"logits": "head"}, {"input": "x"}, {"a": 1}]),
    (TeacherConfig, MLP, "pool", ["avg", "none"], ["max"]),
    (TeacherConfig, MLP, "inputs", [["node"], ["input", "fact"]], [[], "node", [1]]),
    (TeacherConfig, MLP, "outputs", [{"predicted.boxes": "boxes"}], [{"logits": "x"}, {"label": "y"}, {"a": 1}]),
    (TeacherConfig, MLP, "source", [DIGITS], [{}]),
    (TeacherConfig, MLP, "objective", [[{"name": "mse"}]], [{"name": "mse"}]),
    (FieldConfig, {}, "codec", ["dense", "quant", "topk", "lowrank", "sampled", "threshold"], ["top-k", 1]),
    (FieldConfig, {}, "budget", [{"max_kl": 1e-3}, {"max_bytes": 64, "at_temperature": [2]}],
     [{}, {"max_kl": 0}, {"max_bytes": 0}, {"max_kl": 1, "at_temperature": []}, {"max_kl": 1, "at_temperature": [0]},
      {"max_kl": 1, "at_temperature": [1e300]}]),
    (FieldConfig, {}, "dtype", ["float32", "float16", "bfloat16", "uint8"], ["float64", "fp16"]),
    (FieldConfig, {}, "k", [1], [0, -4]),
    (FieldConfig, {}, "mass", [0.95], [1, -0.1]),
    (FieldConfig, {}, "anchor", [1.5], [1, 0.5]),
    (FieldConfig, {}, "bytes", [1], [0]),
    (FieldConfig, {}, "temperatures", [[1, 2.5]], [[0], 2]),
    (FieldConfig, {}, "bits", [4, 8], [5, "8"]),
    (FieldConfig, {}, "per", ["row", "channel"], ["column"]),
    (FieldConfig, {}, "draws", [1], [0]),
    (FieldConfig, {}, "temperature", [0.5, 4], [0, -1]),
    (FieldConfig, {}, "seed", [0], [-1, 2**63]),
    (FieldConfig, {}, "pool", [1], [0]),
    (FieldConfig, {}, "project", [1], [0]),
    (FieldConfig, {}, "projection", ["random", "pca"], ["sparse"]),
    (FieldConfig, {}, "attention", [True, False], ["perhaps"]),
    (ObjectiveConfig, {}, "name", ["kd"], [1]),
    (ObjectiveConfig, {"name": "kd"}, "weight", [0, 2.5], [-1, float("nan"), "much"]),
    (ObjectiveConfig, {"name": "kd"}, "field", ["logits", ["boxes", "boxes.class"]], [1, []]),
    (ObjectiveConfig, {"name": "hint"}, "tap", ["layers.0", ["layer1", "layer2"]], [1, []]),
    (ObjectiveConfig, {"name": "ce"}, "output", ["coarse", ["class", "distillation"]], [1, []]),
    (StudentConfig, {}, "model", ["zoo:mlp"], [1]),
    (StudentConfig, {}, "args", [{}, {"hidden": []}], [{"x": object()}]),
    (StudentConfig, {}, "objective", [[{"name": "kd"}]], [{"name": "kd"}, [{"nam": "kd"}]]),
    (StudentConfig, {}, "train", [{"lr": 1}], [3]),
    (StudentConfig, {}, "store", ["sparse", ["a", "b"]], [1, []]),
    (StudentConfig, {}, "inputs", [["input", "fact"]], [[], "input"]),
    (StudentConfig, {}, "weights", ["w.safetensors"], [1]),
    (StudentConfig, {}, "view", ["cycle", "all", "plain", 3], ["each", 0, 1.5]),
    (Recipe, {"source": DIGITS}, "name", ["a", "A-1_b.c", "x" * 64], ["", "-a", "a b", "../x", "x" * 65, "a\n"]),
    (Recipe, {}, "source", [DIGITS], [{}, {"kind": "digits", "dataset": "digits"}]),
    (Recipe, {"source": DIGITS}, "eval_source", [DIGITS], [{}]),
    (Recipe, {"source": DIGITS, "teacher": MLP}, "fields", [{"logits": {}}], [{"logit": {}}, {"label": {}}]),
    (Recipe, {"source": DIGITS}, "fields", [{}], [{"logits": {}}]),
    (Recipe, {"source": DIGITS}, "students", [{"a": MLP, "b.c": {}}], [{"a/b": MLP}, {"": MLP}, {"a": {"modle": "x"}}]),
    (Recipe, {"source": DIGITS}, "teachers", [{"a": MLP, "b": MLP}], [{"a/b": MLP}, {"a": {}}]),
    (Recipe, {"source": DIGITS, "teacher": MLP}, "teachers", [{}], [{"a": MLP}]),
    (Recipe, {"source": DIGITS}, "baseline", [[{"name": "mse"}]], [{"name": "mse"}]),
    (Recipe, {"source": DIGITS}, "metrics", [["accuracy", "nll"]], ["accuracy", [1]]),
    (Recipe, {"source": DIGITS}, "metric_options", [{"stride": 8}], [{"stride": float("nan")}, 3]),
    (Recipe, {"source": DIGITS}, "grid", [{"kd.weight": [1, 2]}], [{"kd.weight": 1}]),
    (Recipe, {"source": DIGITS, "students": {"a": MLP, "b": MLP}}, "grid", [{}], [{"kd.weight": [1, 2]}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "others", "key", "good", "bad"), KEYS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_key_takes_and_refuses(
    table: type[Table], others: dict[str, Any], key: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        table.model_validate({**others, key: value})
    for value in bad:
        with pytest.raises(ValidationError):
            table.model_validate({**others, key: value})


def test_no_key_is_left_out_here() -> None:
    tables = (SourceConfig, StoreConfig, InputConfig, EarlyStopping, TrainConfig, TeacherConfig, FieldConfig,
              ObjectiveConfig, StudentConfig)  # fmt: skip
    tried = {(table, key) for table, _, key, _, _ in KEYS}
    assert [(t.__name__, key) for t in tables for key in t.model_fields if (t, key) not in tried] == []


def test_values_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().lr = 1.0  # type: ignore[misc]


def test_weights_and_fit_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="`weights` or `fit`, not both"):
        TeacherConfig(model="zoo:mlp", weights="w", fit=TrainConfig())


def test_a_field_gives_its_codec_only_what_was_said() -> None:
    assert FieldConfig(codec="topk", k=4).configuration() == {"k": 4}
    assert FieldConfig().configuration() == {}
    assert FieldConfig(dtype="bfloat16").configuration() == {"dtype": "bfloat16"}
