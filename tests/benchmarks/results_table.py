"""The tables of docs/results.md, from finished runs: `python tests/benchmarks/results_table.py RUN [RUN ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdcache.report import rows
from kdcache.report.rows import filled, headings

LEFT_OUT = {"Seconds", "Beyond noise"}  # seconds are of a machine that does other work; noise is in the gain ÷ sd


def table(results: dict[str, Any]) -> list[str]:
    """A Markdown table of a run's networks, with a line on what it stored."""
    found, heads = rows(results), headings(results)
    kept = [place for place in filled(found) if heads[place] not in LEFT_OUT]
    lines = [["network", "learns from", *(heads[place].lower() for place in kept)]]
    lines += [["---"] * len(lines[0])]
    lines += [[row.name, row.detail, *(row.cells[place] for place in kept)] for row in found]
    store = results["store"]
    stores = results.get("stores") or {"": store}
    bytes_of = ", ".join(f"{name} {one['target_bytes_per_row']:,}".strip() for name, one in stores.items())
    seeds = ", ".join(map(str, results["seeds"]))
    return [f"| {' | '.join(line)} |" for line in lines] + [
        "",
        f"{store['rows']:,} rows; targets, bytes a sample: {bytes_of}; seeds {seeds}.",
    ]


def main() -> None:
    """Print every run's table under its recipe's name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that `kdcache run` filled")
    for run in parser.parse_args().runs:
        results = json.loads((run / "results.json").read_text())
        print("\n".join([f"## {results['name']}", "", *table(results), ""]))


if __name__ == "__main__":
    main()
