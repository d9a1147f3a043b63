"""The table on the terminal."""

from __future__ import annotations

import io

from kdcache_cli.table import print_results
from report_example import example
from rich.console import Console


def printed(text: str = "", *, terminal: bool, width: int = 140) -> str:
    out = io.StringIO()
    print_results(example(text), Console(file=out, force_terminal=terminal, width=width, color_system=None))
    return out.getvalue()


def test_plain_lines_where_it_is_no_terminal() -> None:
    lines = printed(terminal=False, width=40).splitlines()  # never wrapped, whatever the width
    assert lines[0] == "few-labels"
    assert lines[1].split()[:2] == ["Network", "Accuracy,"]
    assert lines[2].split() == ["teacher", "84.31", "–", "–", "–", "–", "97,386", "–"]
    assert lines[4].split() == [
        "kd",
        "84.40",
        "±",
        "0.10",
        "+2.70",
        "±",
        "0.10",
        "13.5",
        "yes",
        "93.00",
        "101,770",
        "33.4",
    ]
    assert lines[6] == (
        "Store: 60,000 rows, 818 bytes a row, 18 of them targets, dumped at 5,321 samples/s, fitted at 48,212 samples/s"
    )
    assert lines[7].startswith("Of 2 students, 2 beat the baseline")


def test_a_table_on_a_terminal_with_the_same_numbers() -> None:
    shown = printed(terminal=True)
    for words in ("84.40 ± 0.10", "+2.70 ± 0.10", "13.5", "yes", "93.00", "101,770"):
        assert words in shown


def test_names_cannot_drive_the_terminal() -> None:
    for terminal in (False, True):
        shown = printed("[red]\x1b[2J\u202e", terminal=terminal, width=300)
        assert "kd[red]\\x1b[2J\\u202e" in shown
        assert "\x1b[2J" not in shown
        assert "\u202e" not in shown
