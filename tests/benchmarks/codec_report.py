"""The tables of the codec comparison, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from codec_measures import TEMPERATURES, Score
from peers import Setting

__all__ = ["budget_table", "hold", "peer_table"]

Scores = Mapping[str, Mapping[float, Score]]
Facts = Mapping[str, Mapping[str, float]]
_WIDTH = 44
_FLOOR = 1e-9  # ratios are no larger than this allows


def admitted(setting: Setting, facts: Facts) -> float:
    """Bytes a row that a budget must hold: as described, or of the file where only that is known."""
    return facts[setting.name]["file"] if math.isnan(setting.size) else setting.size


def peer_table(settings: Sequence[Setting], scores: Scores, facts: Facts) -> str:
    """Every setting with everything that was measured."""
    lines = [
        f"{'setting':{_WIDTH}}{'bytes':>7}{'file':>8}  {'KL at T = 1, 2, 4':26}{'cosine at T = 1, 2, 4':25}"
        f"{'of all rows together':23}{'length':21}{'log Z_T, T = 2, 4':17}{'encode/s':>9}{'read/s':>10}{'decode/s':>10}"
    ]
    for setting in sorted(settings, key=lambda s: (s.family, admitted(s, facts))):
        at, fact = scores[setting.name], facts[setting.name]
        kl = " ".join(f"{at[t].kl:8.2e}" for t in TEMPERATURES)
        cosine = " ".join(f"{at[t].cosine:7.4f}" for t in TEMPERATURES)
        batch = " ".join(f"{at[t].batch:6.4f}" for t in TEMPERATURES)
        norm = " ".join(f"{at[t].norm:5.2f}" for t in TEMPERATURES)
        log_z = " ".join(f"{at[t].log_z:7.4f}" for t in TEMPERATURES[1:])
        speed = "".join(f"{fact.get(name, math.nan):10,.0f}" for name in ("encode", "read", "decode"))
        lines.append(
            f"{setting.name:{_WIDTH}}{admitted(setting, facts):7.1f}{fact['file']:8.1f}  {kl:26}{cosine:25}{batch:23}"
            f"{norm:21}{log_z:17}{speed}"
        )
    return "\n".join(lines) + "\n"


def rivals(peers: Sequence[Setting], facts: Facts, budget: int, top_k: bool = False) -> list[Setting]:
    """The peers' settings of at most `budget` bytes."""
    return [s for s in peers if admitted(s, facts) <= budget and not (top_k and s.family == "RS-KD")]


def budget_table(best: Mapping[int, Setting], peers: Sequence[Setting], scores: Scores, facts: Facts) -> str:
    """kdcache's choice and the best peer by each figure, at each budget."""
    lines = [f"{'at most':8}{'kdcache':{_WIDTH}}{'T':>3}{'KL':>10}{'cosine':>9}   best peers, by KL and by cosine"]
    for budget, setting in best.items():
        for t in TEMPERATURES:
            ours = scores[setting.name][t]
            head = f"{budget:<8}{setting.name:{_WIDTH}}" if t == 1 else " " * (8 + _WIDTH)
            line = f"{head}{t:3g}{ours.kl:10.2e}{ours.cosine:9.4f}"
            if others := rivals(peers, facts, budget):
                by_kl = min(others, key=lambda s: scores[s.name][t].kl)
                by_cosine = max(others, key=lambda s: scores[s.name][t].cosine)
                kl, cosine = scores[by_kl.name][t].kl, scores[by_cosine.name][t].cosine
                line += (
                    f"   {kl:8.2e} ({kl / max(ours.kl, _FLOOR):6.3g}x) {by_kl.name:34} {cosine:7.4f} "
                    f"({(1 - cosine) / max(1 - ours.cosine, _FLOOR):6.3g}x) {by_cosine.name}"
                )
            lines.append(line)
    return "\n".join(lines) + "\n"


def hold(best: Mapping[int, Setting], peers: Sequence[Setting], scores: Scores, facts: Facts, classes: int) -> str:
    """Which aims hold, and where they do not."""
    lines = []
    for t in TEMPERATURES:
        for what, better in (("lowest KL", lambda s: -s.kl), ("highest cosine", lambda s: s.cosine)):
            budgets = [b for b in best if rivals(peers, facts, b) and (t > 1 or b >= 24)]
            missed = [
                b
                for b in budgets
                if better(scores[best[b].name][t]) <= max(better(scores[s.name][t]) for s in rivals(peers, facts, b))
            ]
            lines.append(
                verdict(f"{what} at T = {t:g}, {budgets[0]} to {budgets[-1]} bytes", not missed, f"not at {missed}")
            )
    if classes == 100:
        lower = {
            (b, t): min(scores[s.name][t].kl for s in rivals(peers, facts, b, True))
            / max(scores[best[b].name][t].kl, _FLOOR)
            for b in best
            for t in (2.0, 4.0)
            if rivals(peers, facts, b, True)
        }
        low = {f"{b} B, T = {t:g}": f"{ratio:.0f}x" for (b, t), ratio in lower.items() if ratio < 20}
        lines.append(verdict("20x lower KL than the best top-k peer at T = 2 and 4", not low, f"not at {low}"))
    errors = {b: max(scores[s.name][t].log_z for t in (2.0, 4.0)) for b, s in best.items()}
    over = {b: f"{error:.3f}" for b, error in errors.items() if not error <= 0.02}
    lines.append(verdict("error of log Z_T at most 0.02 nats at T = 2 and 4", not over, f"not at {over}"))
    for theirs, ours, what in (
        ("read", "read", "file to columns, its lists of bytes through Arrow"),
        ("lists", "read", "file to columns, its lists of bytes through Python"),
        ("decode", "decode", "file to targets, its lists of bytes through Arrow"),
    ):
        ratios = {}
        for budget, setting in best.items():
            lists = [facts[s.name].get(theirs, 0.0) for s in rivals(peers, facts, budget) if s.family == "DistillKit"]
            if lists:
                ratios[budget] = facts[setting.name][ours] / max(lists)
        if ratios:
            slow = {b: f"{ratio:.1f}x" for b, ratio in ratios.items() if ratio < 5}
            aim = f"5x as fast as DistillKit, {what} (least {min(ratios.values()):.1f}x)"
            lines.append(verdict(aim, not slow, f"not at {slow}"))
    return "\n".join(lines) + "\n"


def verdict(aim: str, met: bool, otherwise: str) -> str:
    """One line of the summary."""
    return f"  {'holds ' if met else 'MISSED'}  {aim}{'' if met else f': {otherwise}'}"
