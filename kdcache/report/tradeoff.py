"""The picture of `kdcache fidelity`: bytes a row against what each codec keeps of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from kdcache.report.svg import LIGHT, Palette, picture

__all__ = ["tradeoff"]

_LEAST = {"error": 1e-8, "cosine": 1e-6}  # what is below is drawn there: a logarithm has no zero
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def tradeoff(
    trials: Sequence[Mapping[str, Any]], chosen: str | None, kind: str = "svg", palette: Palette = LIGHT
) -> bytes:
    """An SVG or PNG file: KL (or squared error) and 1 - cosine over bytes a row, for each temperature; all logarithmic.

    `trials` are those that `kdcache fidelity --json` prints; `chosen` is the name of one of them, drawn with a ring.
    Points of one codec have one colour; the Pareto front's are filled.
    """
    temperatures = list(dict.fromkeys(t for trial in trials for t in trial["error"]))
    codecs = list(dict.fromkeys(str(trial["codec"]) for trial in trials))
    words = "KL(teacher ‖ decoded), nats" if any(trial["kind"] == "kl" for trial in trials) else "squared error"

    def paint(figure: Any, palette: Palette) -> None:
        panels = figure.subplots(2, len(temperatures), sharex=True, sharey="row", squeeze=False)
        for column, temperature in enumerate(temperatures):
            for axes, quantity in zip(panels[:, column], ("error", "cosine"), strict=True):
                _points(axes, trials, quantity, temperature, codecs, chosen, palette)
                axes.set_xscale("log", base=4)
                axes.set_yscale("log")
                axes.grid(True)
                axes.xaxis.set_major_locator(LogLocator(base=4, numticks=8))
                axes.yaxis.set_major_locator(LogLocator(numticks=5))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panels[0, column].set_title(f"T = {temperature}", size=8, color=palette.ink)
            panels[1, column].set_xlabel("bytes a row")
        panels[0, 0].set_ylabel(words)
        panels[1, 0].set_ylabel("1 - cosine of the gradients")
        handles = [
            Line2D(
                [], [], color=_colour(codec, codecs, palette), marker=_mark(codec, codecs), linestyle="", label=codec
            )
            for codec in codecs
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), borderpad=0.0, handletextpad=0.3)

    return picture(paint, palette, 4.2, kind, opaque=True)


def _points(
    axes: Any, trials: Sequence[Mapping[str, Any]], quantity: str, temperature: str, codecs: list[str],
    chosen: str | None, palette: Palette,
) -> None:  # fmt: skip
    for trial in trials:
        if temperature not in trial[quantity]:
            continue
        value = trial[quantity][temperature]
        height = max(1 - value if quantity == "cosine" else value, _LEAST[quantity])
        colour = _colour(trial["codec"], codecs, palette)
        axes.plot(
            [trial["bytes"]], [height], _mark(trial["codec"], codecs), color=colour, markersize=4,
            markerfacecolor=colour if trial["pareto"] else "none", markeredgewidth=0.8,
        )  # fmt: skip
        if trial["name"] == chosen:
            axes.plot(
                [trial["bytes"]], [height], "o", color=palette.ink, markersize=10, markerfacecolor="none",
                markeredgewidth=1.2,
            )  # fmt: skip


def _colour(codec: str, codecs: list[str], palette: Palette) -> str:
    return palette.series[codecs.index(codec) % len(palette.series)]


def _mark(codec: str, codecs: list[str]) -> str:
    return _MARKS[codecs.index(codec) % len(_MARKS)]
