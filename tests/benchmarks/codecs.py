"""kdcache's codecs and those of other systems, on the same teacher's logits, in one run.

    python tests/benchmarks/codecs.py [--only c100,c1000,v32k] [--work DIR] [--quick]

Bytes a row (described, and of the file written), KL(teacher ‖ decoded) and the cosine of the student's gradient at
T = 1, 2, 4, the error of the log-partition; rows that a second of processor time encodes, reads to columns, reads and
decodes to targets (a machine that others use too has no other seconds to believe). Then, at each budget, the
kdcache codec that does best on rows set aside, judged on others against the best setting of any peer there: the best by
each figure on its own, as seen on the judged rows, so the comparison favours the peers. Last, which aims hold.

A system that gives classes no mass at all has an infinite KL. Each system's rule for classes that it does not store is
its own (`peers.retempered`); of several that it offers all are tried.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from codec_candidates import BUDGETS, kdcache_settings, peer_settings, unbiased_settings
from codec_language import c1000, v32k
from codec_measures import TEMPERATURES, Judge, Score, merged
from codec_report import budget_table, hold, peer_table
from codec_teachers import Pair, Teacher, c100
from peers import Setting, Stored
from peers_distillkit import read_lists

from kdcache.errors import MissingData

Scores = dict[str, dict[float, Score]]
TEACHERS: dict[str, Callable[[Path, bool], Teacher]] = {"c100": c100, "c1000": c1000, "v32k": v32k}


def scored(settings: Iterable[Setting], pair: Pair) -> Scores:
    """Every setting at every T on one set of rows."""
    teacher, student = pair
    classes = teacher.shape[1]
    size = 128 if classes > 4096 else 1024
    judges = {
        t: [Judge(z, s, t) for z, s in zip(teacher.split(size), student.split(size), strict=True)] for t in TEMPERATURES
    }
    found: Scores = {}
    for setting in settings:
        stored: Stored = {}
        found[setting.name] = {}
        for t in TEMPERATURES:
            if setting.fixes_t or not stored:
                stored = setting.encode(teacher, t)
            parts = (
                judge.sums(setting.view({name: c[i * size : (i + 1) * size] for name, c in stored.items()}, t, classes))
                for i, judge in enumerate(judges[t])
            )
            found[setting.name][t] = merged(parts)
    return found


def chosen(settings: Sequence[Setting], scores: Scores) -> dict[int, Setting]:
    """For each budget the setting with the least product of KL and 1 - cosine over all T."""

    def cost(setting: Setting) -> float:
        value = 1.0
        for score in scores[setting.name].values():
            value *= max(score.kl, 1e-12) * max(1 - score.cosine, 1e-12)
        return value

    return {
        b: min((s for s in settings if s.size <= b), key=cost) for b in BUDGETS if any(s.size <= b for s in settings)
    }


def rates(setting: Setting, logits: torch.Tensor) -> dict[str, float]:
    """File bytes a row; rows a second encoded, read to columns, read and decoded."""
    classes = logits.shape[1]
    few = logits[: 64 if classes > 4096 else 1024]
    with tempfile.TemporaryDirectory() as folder:
        path, many = Path(folder) / "file", Path(folder) / "many"
        stored = setting.encode(logits, 2.0)
        setting.write(stored, path)
        found = {
            "file": path.stat().st_size / len(logits),
            "encode": len(few) / fastest(lambda: setting.encode(few, 2.0)),
        }
        if setting.read is None or setting.decode is None:
            return found
        read, decode = setting.read, setting.decode
        rows = 1 << 16  # so many that opening the file does not count
        tiled = {name: c.repeat(-(-rows // len(c)), *[1] * (c.ndim - 1))[:rows] for name, c in stored.items()}
        setting.write(tiled, many)
        found["read"] = rows / fastest(lambda: read(many))
        some = {name: c[:1024] for name, c in tiled.items()}
        found["decode"] = 1 / (1 / found["read"] + fastest(lambda: decode(some)) / 1024)
        if setting.family == "DistillKit" and "ghost" not in setting.name:
            found["lists"] = rows / fastest(lambda: read_lists(many), 1)
    return found


def fastest(action: Callable[[], object], repeats: int = 2) -> float:
    """Seconds of processor time, of all threads, of the quickest of some calls."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def compare(teacher: Teacher) -> None:
    """All tables of one teacher."""
    print(f"\n## {teacher.name}: {teacher.facts}\n")
    ours = list(kdcache_settings(teacher.pilot))
    tried = scored(ours, teacher.choose)
    # A small network's logits are of low rank, a large language model's much less so: hence also without lowrank.
    ways = {
        "all codecs": chosen(ours, tried),
        "without lowrank": chosen([s for s in ours if s.family != "lowrank"], tried),
    }
    picked = list({setting.name: setting for best in ways.values() for setting in best.values()}.values())
    peers = list(peer_settings(teacher.pilot))
    all_of_them = [*picked, *unbiased_settings(teacher.pilot), *peers]
    facts = {s.name: rates(s, teacher.pilot[:1024]) for s in all_of_them}
    for part, pair in teacher.judged.items():
        scores = scored(all_of_them, pair)
        print(
            f"{part}: {len(pair[0])} rows, {len(ours)} settings of kdcache tried on {len(teacher.choose[0])} others\n"
        )
        print(peer_table(all_of_them, scores, facts))
        for way, best in ways.items():
            print(f"{teacher.name}, {part}, {way}\n\n{budget_table(best, peers, scores, facts)}")
            print(hold(best, peers, scores, facts, teacher.pilot.shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TEACHERS), help="teachers, by comma")
    parser.add_argument("--work", type=Path, help="where teachers are kept (default: a new temporary folder)")
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    options = parser.parse_args()
    names = options.only.split(",")
    if strange := set(names) - set(TEACHERS):
        parser.error(f"--only: {sorted(strange)} are none of {list(TEACHERS)}")
    shared = Path(__file__).parents[3] / "shared" / "data"
    if shared.is_dir():
        os.environ.setdefault("KDCACHE_DATA", str(shared))
    torch.set_num_threads(1)
    work = options.work or Path(tempfile.mkdtemp(prefix="kdcache-codecs-"))
    work.mkdir(parents=True, exist_ok=True)
    print(f"python tests/benchmarks/codecs.py --only {options.only} --work {work}{' --quick' * options.quick}")
    for name in names:
        try:
            compare(TEACHERS[name](work, options.quick))
        except (FileNotFoundError, MissingData) as error:
            print(f"\n## {name}: left out, {error}")


if __name__ == "__main__":
    main()
