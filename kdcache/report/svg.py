"""A small canvas: matplotlib figures as SVG `data:` URIs, the same bytes for the same input on any machine."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Palette", "draw", "picture"]

WIDTH = 4.7  # inches; one width for all pictures, so that their letters are of one size on the page
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial"


@dataclass(frozen=True)
class Palette:
    """The colours of one mode; those of `series` are told apart by the colour-blind."""

    ink: str
    muted: str
    rule: str
    surface: str
    baseline: str
    low: str
    high: str
    on_high: str
    series: tuple[str, ...]


LIGHT = Palette(
    "#1c2126",
    "#626b75",
    "#dfe3e7",
    "#ffffff",
    "#8a929b",
    "#f3f6f9",
    "#1f5fa6",
    "#ffffff",
    ("#1f5fa6", "#c2620c", "#1d8065", "#7a4fa3", "#b03a5b", "#8c7400", "#3d8fb5"),
)
DARK = Palette(
    "#e6e9ec",
    "#9aa4ae",
    "#333a42",
    "#15181c",
    "#8a939d",
    "#1d2228",
    "#79b0ec",
    "#10151a",
    ("#79b0ec", "#eda35c", "#5cc3a4", "#b996dd", "#e8839f", "#d3bb55", "#8ccbe3"),
)


def draw(paint: Callable[[Any, Palette], None], palette: Palette, height: float) -> str:
    """Run `paint(figure, palette)` on a figure `height` inches high; returns an SVG `data:` URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture(paint, palette, height)).decode()


def picture(
    paint: Callable[[Any, Palette], None], palette: Palette, height: float, kind: str = "svg", opaque: bool = False
) -> bytes:
    """The same as the bytes of an SVG or PNG (`kind`) file, on a transparent page or on the palette's surface."""
    settings = {
        "svg.hashsalt": "kdcache",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "text.parse_math": False,
        "font.size": 8.0,
        "text.color": palette.ink,
        "axes.labelcolor": palette.muted,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "axes.edgecolor": palette.rule,
        "axes.facecolor": "none",
        "grid.color": palette.rule,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "xtick.major.size": 0.0,
        "ytick.major.size": 0.0,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
    }
    page = io.BytesIO()
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # The page's own fonts draw the letters; that matplotlib's lacks some of them only blurs its layout.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        paint(figure, palette)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        ground = {"facecolor": palette.surface} if opaque else {"transparent": True}
        figure.savefig(page, format=kind, metadata=metadata, dpi=200, **ground)
    return page.getvalue().replace(b"'DejaVu Sans'", FONTS.encode()) if kind == "svg" else page.getvalue()
