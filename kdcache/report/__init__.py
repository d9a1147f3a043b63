"""Statistics, pictures and the page that say what a run brought; matplotlib and Jinja2 load when a page is written."""

from __future__ import annotations

from kdcache.report.rows import Row, rows
from kdcache.report.statistics import agreement, calibration_error, confidence_histogram, confusion, paired, summarise
from kdcache.report.verdict import verdict
from kdcache.report.wording import visible
from kdcache.report.write import write_report

__all__ = [
    "Row",
    "agreement",
    "calibration_error",
    "confidence_histogram",
    "confusion",
    "paired",
    "rows",
    "summarise",
    "verdict",
    "visible",
    "write_report",
]
