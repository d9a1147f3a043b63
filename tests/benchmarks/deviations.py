"""How far every loss is from its float64 reference: the largest relative deviation of value and gradient.

    .venv/bin/python tests/benchmarks/deviations.py [--draws 10] [--rows 3 8 16] [--only kd ...] [--markdown]

The cases are those of the conformance class, tests/objectives/cases_*.py. A draw is one batch of a seed and a number of
rows (those below what a loss takes are left out). The function has the drawn float32 numbers, the reference the same
numbers in float64. The gradient's deviation is |difference| / |reference| in the 2-norm, of the student's tensor at
which it is largest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))

from objective_deviation import compared, every_case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=10, help="seeds for each number of rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[3, 8, 16])
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose name contains one of these")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    cases, broken = every_case()
    row = "| {:40} | {:>9} | {:>9} | {:>5} |" if options.markdown else "{:40} {:>9} {:>9} {:>5}"
    print(row.format("case", "value", "gradient", "draws"))
    if options.markdown:
        print("|---|---|---|---|")
    for name, case in cases.items():
        if not any(part in name for part in options.only):
            continue
        rows = [count for count in options.rows if count >= case.smallest]
        found = [compared(case, count, seed) for count in rows for seed in range(options.draws)]
        worst = [f"{max(one):.1e}" for one in zip(*found, strict=True)]
        print(row.format(name, *worst, len(found)), flush=True)
    for family, error in broken.items():
        print(f"cases_{family}.py does not import: {error!r}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
