"""The pictures of a report, each a function of plain numbers and a palette that returns an SVG `data:` URI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kdcache.report.curves import band, series, thin
from kdcache.report.measure import Measure
from kdcache.report.svg import Palette, draw
from kdcache.report.wording import short

__all__ = ["confidence_bars", "confusion_matrix", "dots_by_seed", "grid_heat", "training_curves"]

NAMED = 20  # more classes than this are not written at the axes
WRITTEN = 12  # more classes than this are not written into the cells


def training_curves(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], split: str, key: str, palette: Palette
) -> str:
    """`key` over optimiser steps: every seed thin; their mean and ± sd over the steps that all of them reached."""
    scale = 100.0 if key == "accuracy" else 1.0

    def paint(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        handles = []
        for name, colour in _colours(list(curves), palette).items():
            seeds = [thin(series(rows, split, key)) for rows in curves[name]]
            whole = band(seeds)
            dash = (0, (4, 2)) if name in ("baseline", "teacher") else "solid"
            for seed in seeds if len(seeds) > 1 or whole is None else []:
                axes.plot(seed.steps, scale * seed.values, color=colour, linewidth=0.6, alpha=0.35)
            if whole is not None:
                mean, sd = scale * whole.mean, scale * whole.sd
                if len(seeds) > 1:
                    axes.fill_between(whole.steps, mean - sd, mean + sd, color=colour, alpha=0.16, linewidth=0)
                axes.plot(whole.steps, mean, color=colour, linestyle=dash)
                handles.append(Line2D([], [], color=colour, linestyle=dash, label=_label(name, 22)))
        _horizontal(axes)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %" if key == "accuracy" else f"{value:g}")
        _legend(figure, handles)

    return draw(paint, palette, 2.75)


def dots_by_seed(
    students: Mapping[str, Sequence[float]],
    baseline: Sequence[float],
    teacher: float | None,
    measure: Measure,
    palette: Palette,
) -> str:
    """A dot for each seed, a band for mean ± sd, the teacher as a line; bars from zero would hide the difference."""
    groups = {**students, **({"baseline": baseline} if len(baseline) else {})}

    def paint(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        for row, (name, colour) in enumerate(_colours(list(groups), palette).items()):
            values = measure.scale * np.asarray(groups[name], dtype=np.float64)
            mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
            axes.plot([mean - sd, mean + sd], [row, row], color=colour, linewidth=5, alpha=0.28, solid_capstyle="butt")
            axes.plot([mean, mean], [row - 0.24, row + 0.24], color=colour, linewidth=1.8, solid_capstyle="butt")
            axes.plot(
                values, np.full(len(values), row), "o", color=colour, markersize=3.6, alpha=0.85, markeredgewidth=0
            )
        if teacher is not None:
            place = measure.scale * teacher
            axes.axvline(place, color=palette.ink, linewidth=1.0, linestyle=(0, (4, 2)))
            axes.annotate(
                f"teacher {place:.2f}",
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=palette.ink,
            )
        axes.set_yticks(range(len(groups)), [_label(name, 20) for name in groups], color=palette.ink)
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.margins(x=0.1)
        axes.grid(True, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        unit = f", {measure.unit}" if measure.unit else ""
        axes.set_xlabel(f"{measure.key} on the evaluation rows{unit}")

    return draw(paint, palette, 0.85 + 0.3 * max(len(groups), 5))


def confidence_bars(counts: NDArray[np.int64], edges: NDArray[np.float64], mean: float, palette: Palette) -> str:
    """Share of rows in each bin of the top-1 probability, with the mean marked."""

    def paint(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        share = 100 * counts / max(int(counts.sum()), 1)
        axes.bar(
            edges[:-1],
            share,
            width=np.diff(edges),
            align="edge",
            color=palette.series[0],
            alpha=0.85,
            edgecolor=palette.surface,
            linewidth=1.2,
        )
        axes.axvline(mean, color=palette.ink, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.annotate(
            f"mean {mean:.3f}",
            (mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            color=palette.ink,
        )
        axes.set_xlim(0, 1)
        axes.tick_params(axis="x", pad=6)
        _horizontal(axes)
        axes.set_xlabel("probability of the top class at T = 1")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")

    return draw(paint, palette, 2.75)


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str], palette: Palette) -> str:
    """Share of each true class (row) by predicted class; colours by square root, so that confusions show."""

    def paint(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        total = counts.sum(axis=1, keepdims=True)
        share = counts / np.maximum(total, 1)
        classes = len(counts)
        colour = _cells(axes, share, PowerNorm(0.5, 0.0, 1.0), palette)
        if classes <= WRITTEN:
            for row, column in zip(*np.nonzero(share >= 0.005), strict=True):
                _write(axes, row, column, f"{100 * share[row, column]:.0f}", colour(share[row, column]), palette)
        if classes <= NAMED:
            names = [_label(name, 12) for name in class_names] or [str(index) for index in range(classes)]
            turned = max(map(len, names)) > 3
            axes.set_xticks(range(classes), names, rotation=90 if turned else 0)
            axes.set_yticks(range(classes), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return draw(paint, palette, 4.1)


def grid_heat(axes_of: Sequence[tuple[str, Sequence[Any]]], values: NDArray[np.float64], palette: Palette) -> str:
    """Mean accuracy in % [first axis, second axis] of a two-axis grid; NaN cells stay empty."""
    (row_name, row_values), (column_name, column_values) = axes_of

    def paint(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        colour = _cells(axes, values, PowerNorm(1.0, low, max(high, low + 1e-9)), palette)
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            _write(axes, row, column, f"{values[row, column]:.2f}", colour(values[row, column]), palette)
        axes.set_xticks(range(len(column_values)), [_label(value, 10) for value in column_values])
        axes.set_yticks(range(len(row_values)), [_label(value, 10) for value in row_values])
        axes.set_xlabel(_label(column_name, 30))
        axes.set_ylabel(_label(row_name, 30))

    return draw(paint, palette, 0.9 + 0.42 * max(len(row_values), 2))


def _colours(names: Sequence[str], palette: Palette) -> dict[str, str]:
    """A colour for each name, the same in every picture of the same students; all alike where there are too many."""
    students = [name for name in names if name not in ("baseline", "teacher")]
    few = len(students) <= len(palette.series)
    colours = {name: palette.series[index if few else 0] for index, name in enumerate(students)}
    return {name: colours.get(name, palette.ink if name == "teacher" else palette.baseline) for name in names}


def _label(text: object, limit: int) -> str:
    words = short(text, limit)
    return f" {words}" if words.startswith("_") else words  # matplotlib hides labels that begin with "_"


def _horizontal(axes: Any) -> None:
    axes.grid(True, axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    if handles:
        columns = min(len(handles), 3 if max(len(handle.get_label()) for handle in handles) < 16 else 2)
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=columns,
            handlelength=1.8,
            columnspacing=1.4,
            borderpad=0.0,
            borderaxespad=0.2,
        )


def _cells(axes: Any, values: NDArray[np.float64], norm: Any, palette: Palette) -> Callable[[float], Any]:
    """Paint the cells; returns the colour (red, green, blue, alpha) that a value has got."""
    colours = LinearSegmentedColormap.from_list("kdcache", [palette.low, palette.high])
    rows, columns = values.shape
    gap = 1.0 if max(rows, columns) <= NAMED else 0.0
    axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=colours,
        norm=norm,
        edgecolor=palette.surface if gap else "face",
        linewidth=gap,
        rasterized=not gap,
    )
    axes.set_ylim(rows - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)
    return lambda value: colours(norm(value))


def _write(axes: Any, row: int, column: int, text: str, behind: Any, palette: Palette) -> None:
    ink = max(palette.ink, palette.on_high, key=lambda colour: abs(_lightness(to_rgb(colour)) - _lightness(behind)))
    axes.text(column, row, text, ha="center", va="center", color=ink, size=7)


def _lightness(colour: Sequence[float]) -> float:
    """Perceived lightness, about (relative luminance of WCAG 2) ** (1 / 2.4)."""
    linear = np.asarray(colour[:3], dtype=np.float64) ** 2.2
    return float((linear @ (0.2126, 0.7152, 0.0722)) ** (1 / 2.4))
