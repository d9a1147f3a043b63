"""A run's results as `kdcache run` writes them, for the tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcache.report import paired, summarise

__all__ = ["arguments", "example"]


def example(text: str = "") -> dict[str, Any]:
    """Results of two students; `text` is appended to every string that a stranger could choose."""
    alone, ours = [0.815, 0.817, 0.819], [0.843, 0.844, 0.845]
    student = {
        "accuracy": summarise(ours),
        "parameters": 101770,
        "gain": paired(ours, alone),
        "agreement": 0.93,
        "objective": [{"name": f"kd{text}", "weight": 0.9, "temperature": 2.0, "tap": None}, f"0.1 ce{text}"],
        "seconds": 33.4,
    }
    return {
        "name": f"few-labels{text}",
        "teacher": {"accuracy": 0.8431, "parameters": 97386, "model": f"zoo:convnet{text}"},
        "baseline": {"accuracy": summarise(alone), "parameters": 101770, "seconds": 31.2},
        "students": {f"kd{text}": student, f"soft{text}": student},
        "store": {
            "rows": 60000,
            "bytes_per_row": 818.25,
            "target_bytes_per_row": 18,
            "digest": f"9f2c{text}",
            "format": f"parquet{text}",
            "fidelity": {f"logits{text}": {"kl": {"1": 1e-5, f"2{text}": 0.0021}}},
            "fields": {
                f"logits{text}": {
                    "codec": f"topk{text}",
                    "dtype": f"float32{text}",
                    "shape": [10],
                    "configuration": {"k": 4, "dtype": f"float16{text}"},
                },
                f"other{text}": f"dense{text}",
            },
        },
        "throughput": {"dump_samples_per_second": 5321.2, "train_samples_per_second": 48211.9},
        "seeds": [0, 1, 2],
        "environment": {f"kdcache{text}": f"0.1.0{text}", "cores": 2, "more": [f"x{text}"]},
        "command": f"kdcache run few-labels.toml --out runs{text}",
        "grid": {
            "axes": {f"kd.weight{text}": [0.1, 0.9], f"kd.temperature{text}": [1, f"4{text}"]},
            "cells": {f"kd{text}": [0.1, 1], f"soft{text}": [0.9, f"4{text}"]},
        },
    }


def arguments(text: str = "") -> dict[str, Any]:
    """What `write_report` takes beside the results."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    runs = [
        [
            {"step": step, "epoch": step / 100, "split": split, "loss": 1 / step, "accuracy": 1 - seed / step}
            for step in range(10, 100 - 10 * seed, 10)
            for split in ("train", "val")
        ]
        for seed in range(3)
    ]
    return {
        "curves": {"baseline": runs, f"kd{text}": runs, f"soft{text}": runs},
        "teacher_probabilities_top": rng.random(500),
        "predictions": {"teacher": labels, f"kd{text}": rng.integers(0, 3, 200)},
        "labels": labels,
        "class_names": (f"shirt{text}", f"coat{text}", f"bag{text}"),
    }
