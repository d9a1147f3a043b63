"""What encoding costs beside the teacher's forward pass, per row or token, on one thread.

    python tests/benchmarks/encode.py [--repeats 5] [--only image,language] [--json FILE]

Two teachers of fresh weights, whose logits are spread to a trained one's range: zoo:resnet20 on 3×32×32 with 100
classes, and zoo:gpt (6 layers, width 256) with a vocabulary of 32,768, whose pass ends with the logits. Seconds are
processor time, medians of the repeats, taken in turn; `share` is encoding ÷ forward pass. The teachers are small: the
share falls as the teacher grows, since encoding depends on the number of classes alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.models import build_model

IMAGE = {
    "dense": [{"dtype": "float16"}],
    "quant": [{"bits": 8}, {"bits": 4}],
    "topk": [{"k": 8}, {"k": 16, "dtype": "uint8"}],
    "threshold": [{"k": 16}],
    "sampled": [{"draws": 32}],
    "lowrank": [{"bytes": 16}, {"bytes": 24}, {"bytes": 48}],
}
LANGUAGE = {
    "dense": [{"dtype": "float16"}],
    "topk": [{"k": 16}, {"k": 64}],
    "threshold": [{"k": 32}],
    "sampled": [{"draws": 50}],
}


def image() -> tuple[Callable[[], Tensor], int]:
    """A forward pass of 256 images, and how many rows it gives."""
    model = build_model("zoo:resnet20", {}, input=Array("uint8", (3, 32, 32)), outputs=100).eval()
    x = torch.randn(256, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    return lambda: model(x), 256


def language() -> tuple[Callable[[], Tensor], int]:
    """A forward pass of 4 sequences of 128 tokens, and how many tokens it gives."""
    args = {"width": 256, "layers": 6, "heads": 8}
    model = build_model("zoo:gpt", args, input=Array("int32", (128,)), outputs=32_768).eval()
    tokens = torch.randint(0, 32_768, (4, 128))
    return lambda: model(tokens).flatten(0, 1), 512


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(forward: Callable[[], Tensor], codecs: dict[str, list[dict[str, Any]]], repeats: int) -> dict[str, float]:
    """Median seconds of the pass and of encoding what it gives, by name."""
    logits = forward()
    logits = (logits - logits.mean(1, keepdim=True)) * (3 / logits.std(1, keepdim=True))
    keys = torch.arange(len(logits))
    calls: dict[str, Callable[[], object]] = {"forward pass": forward}
    for name, settings in codecs.items():
        for given in settings:
            codec = CODECS[name]
            configuration = codec.configure(given, Array("float32", (logits.shape[1],)))
            noise = torch.randn(2048, logits.shape[1]) if codec.NEEDS_PILOT else logits
            tables = {key: torch.from_numpy(table) for key, table in codec.fit(3 * noise, configuration).items()}
            title = f"{name} {', '.join(f'{k} = {v}' for k, v in given.items())}"
            calls[title] = lambda codec=codec, c=configuration, t=tables: codec.encode(logits, c, t, keys)  # type: ignore[misc]
    times: dict[str, list[float]] = {title: [] for title in calls}
    for call in calls.values():
        call()  # warm
    for _ in range(repeats):
        for title, call in calls.items():
            times[title].append(seconds(call))
    return {title: statistics.median(values) for title, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="image,language")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for title, teacher, codecs in (("image", image, IMAGE), ("language", language, LANGUAGE)):
        if title not in options.only.split(","):
            continue
        with torch.inference_mode():
            forward, rows = teacher()
            found = measure(forward, codecs, options.repeats)
        whole = found["forward pass"]
        print(f"{title:28}{'µs a row':>12}{'share':>9}   ({rows} rows a call, median of {options.repeats})")
        for name, value in found.items():
            print(f"{name:28}{value / rows * 1e6:12.1f}{value / whole:9.1%}")
        print()
        results[title] = {name: {"microseconds": v / rows * 1e6, "share": v / whole} for name, v in found.items()}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
