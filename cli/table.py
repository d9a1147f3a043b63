"""A run's results on the terminal: the numbers of `report.html`; plain lines where it is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdcache.report import rows, verdict, visible
from kdcache.report.rows import filled, headings
from kdcache.report.wording import NOTHING, amount, count

__all__ = ["aligned", "print_results"]


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the networks' table, the facts of the store and what they amount to; `results` is results.json."""
    found = rows(results)
    kept = filled(found)
    head = ["Network", *(headings(results)[i] for i in kept)]
    cells = [[visible(row.name), *(row.cells[i] for i in kept)] for row in found]
    name = visible(results.get("name") or "results")
    if console.is_terminal:
        console.print(_boxed(name, head, cells))
    else:
        for line in [name, *aligned([head, *cells])]:
            console.print(Text(line), soft_wrap=True)
    for line in [*_facts(results), verdict(results)]:
        console.print(Text(line), soft_wrap=not console.is_terminal)


def _boxed(name: str, head: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(
        title=Text(name, style="bold"),
        title_justify="left",
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, heading in enumerate(head):
        table.add_column(
            Text(heading),
            justify="right" if index else "left",
            no_wrap=index > 0,
            overflow="fold" if index == 0 else "ellipsis",
        )
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    return table


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells as plain lines, the first column to the left and the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _facts(results: Mapping[str, Any]) -> list[str]:
    store, speed = results.get("store") or {}, results.get("throughput") or {}
    several = len(results.get("stores") or ()) > 1
    parts = [
        (count(store.get("rows")), "{} rows"),
        (NOTHING if several else amount(store.get("bytes_per_row")), "{} bytes a row"),
        (NOTHING if several else amount(store.get("target_bytes_per_row")), "{} of them targets"),
        (count(speed.get("dump_samples_per_second")), "dumped at {} samples/s"),
        (count(speed.get("train_samples_per_second")), "fitted at {} samples/s"),
    ]
    known = [form.format(value) for value, form in parts if value != NOTHING]
    return [f"{'Stores' if several else 'Store'}: {', '.join(known)}"] if known else []
