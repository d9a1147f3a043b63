"""`kdcache demo`: the whole path on data that comes with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import click

from .options import folder
from .run import run_and_print

__all__ = ["demo"]


@click.command()
@click.option("--out", type=folder, default=Path("demo"), show_default=True, metavar="DIR", help="The run's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json.")
def demo(out: Path, as_json: bool) -> None:
    """Handwritten digits, end to end: a convolutional teacher from a few labels, its soft labels, an MLP student.

    \b
    Example: kdcache demo
    """
    run_and_print("digits", out, (), None, as_json)
