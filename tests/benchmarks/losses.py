"""Peak memory and time of one training step's last layer and loss: dense KL against sparse targets, unfused and fused.

    .venv/bin/python tests/benchmarks/losses.py [--rows 2048] [--width 256] [--classes 32768] [--device cpu]

A step is hidden [N, D] -> logits -> loss -> gradients of hidden and of the head's weight, in float32 at T = 2.
`unfused` makes all logits [N, V] first, `fused` is `kdcache.objectives.chunked`. Each figure is from a process of its
own. Memory is the step's peak above what was there before it (the inputs: hidden, weight and targets), on a CPU by the
process's high-water mark; targets are listed beside it, as what the loss must be given. `plain torch` is F.kl_div of
two log_softmax, the loss that most training scripts have. Targets are random: what they hold changes neither figure.
Time is the median of the steps after the first: of the processor with one thread, since others use this machine too,
else of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.codecs import QuantisedLogits, SampledLogits, SparseLogits, Targets
from kdcache.objectives import ce, chunked, jsd, kd, reverse_kl

TEMPERATURE = 2.0
MIB = 1 << 20

Loss = Callable[[Tensor, Targets], Tensor]


def plain(student: Tensor, targets: Targets) -> Tensor:
    """The dense loss as it is usually written."""
    assert isinstance(targets, Tensor)
    log_q = F.log_softmax(student / TEMPERATURE, dim=1)
    log_p = F.log_softmax(targets / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def softened(loss: Callable[..., Tensor]) -> Loss:
    return lambda student, targets: loss(student, targets, temperature=TEMPERATURE)


LOSSES: dict[str, tuple[str, Loss]] = {  # name -> kind of targets, loss
    "plain torch, dense": ("dense", plain),
    "kd, dense": ("dense", softened(kd)),
    "kd, quant 8 bits": ("quant", softened(kd)),
    "kd, topk 32": ("topk 32", softened(kd)),
    "kd, topk 64": ("topk 64", softened(kd)),
    "kd, sampled 50": ("draws 50", softened(kd)),
    "kd, threshold 32": ("draws 32", softened(kd)),
    "reverse_kl, topk 32": ("topk 32", softened(reverse_kl)),
    "jsd, topk 32": ("topk 32", softened(jsd)),
    "ce, labels": ("labels", lambda student, label: ce(student, label)),  # type: ignore[arg-type]
}


def made(kind: str, rows: int, classes: int, generator: torch.Generator) -> Targets:
    """Targets of a kind, without a temporary of their own size that would hide the loss's peak."""
    if kind == "labels":
        return torch.randint(classes, (rows,), generator=generator)
    if kind == "dense":
        return torch.empty(rows, classes).normal_(generator=generator)
    if kind == "quant":
        codes = torch.empty(rows, classes, dtype=torch.uint8).random_(generator=generator)
        return QuantisedLogits(codes, torch.full((rows, 1), 0.1), torch.zeros(rows, 1))
    name, count = kind.split()
    stride = classes // int(count)  # distinct classes, one in each stretch
    indices = torch.arange(int(count)) * stride + torch.randint(stride, (rows, int(count)), generator=generator)
    weights = torch.rand(rows, int(count), generator=generator)
    weights = (weights / weights.sum(1, keepdim=True)).sort(1, descending=True).values
    if name == "draws":
        return SampledLogits(indices, weights, TEMPERATURE, classes)
    others = torch.tensor([-12.0, 1.0, -2.0])
    return SparseLogits(indices, (0.8 * weights).log(), others.repeat(rows, 1), classes)


def bytes_of(targets: Targets) -> int:
    tensors = [targets] if isinstance(targets, Tensor) else [x for x in vars(targets).values() if isinstance(x, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak(device: torch.device) -> int:
    """The most bytes that the process has had at once."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One line of the table, in this process."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    kind, loss = LOSSES[options.case]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(options.rows, options.width).normal_(generator=generator).to(device).requires_grad_()
    weight = torch.empty(options.classes, options.width).normal_(std=0.05, generator=generator).to(device)
    weight.requires_grad_()
    targets = made(kind, options.rows, options.classes, generator).to(device)

    def step(hidden: Tensor, weight: Tensor, targets: Targets) -> float:
        if options.fused:
            value = chunked(hidden, weight, None, lambda logits, part: loss(logits, targets[part]), options.chunk_rows)
        else:
            value = loss(hidden @ weight.T, targets)
        hidden.grad = weight.grad = None
        value.backward()
        return value.item()

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    clock = time.process_time if device.type == "cpu" and options.threads == 1 else time.perf_counter
    small = torch.ones(2, 3, device=device, requires_grad=True), torch.ones(256, 3, device=device, requires_grad=True)
    step(*small, made(kind, 2, 256, generator).to(device))  # libraries and thread pools
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak(device)
    value = step(hidden, weight, targets)
    found = {"peak": peak(device) - before, "targets": bytes_of(targets), "loss": value}
    seconds = []
    for _ in range(options.repeats):
        synchronise()
        began = clock()
        step(hidden, weight, targets)
        synchronise()
        seconds.append(clock() - began)
    return {**found, "seconds": statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--classes", type=int, default=32768)
    parser.add_argument("--chunk-rows", type=int, help="of the fused loss; default 16 MiB of logits")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--case", choices=list(LOSSES), help=argparse.SUPPRESS)
    parser.add_argument("--fused", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options)))
        return
    logits = options.rows * options.classes * 4 / MIB
    print(
        f"{options.rows} rows, {options.width} wide, {options.classes} classes: float32 logits are {logits:.0f} MiB; "
        f"{options.device}, {options.threads} threads, torch {torch.__version__}, median of {options.repeats}"
    )
    print(f"{'':22}{'targets':>9}{'unfused':>20}{'fused':>22}")
    print(f"{'':22}{'MiB':>9}{'peak MiB':>11}{'s':>9}{'peak MiB':>13}{'s':>9}")
    for name in options.only:
        ways = []
        for fused in ([], ["--fused"]):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", name, *fused]
            ways.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        assert abs(ways[0]["loss"] - ways[1]["loss"]) < 1e-4 * abs(ways[0]["loss"]), (name, ways)
        print(
            f"{name:22}{ways[0]['targets'] / MIB:9.1f}{ways[0]['peak'] / MIB:11.0f}{ways[0]['seconds']:9.2f}"
            f"{ways[1]['peak'] / MIB:13.0f}{ways[1]['seconds']:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
