"""Metrics: what networks are judged by; plain functions over what a network said of every evaluation row."""

from __future__ import annotations

from kdcache.metrics.collect import fields_read, input_range, measured
from kdcache.metrics.judged import Judged, Network
from kdcache.metrics.measure import check_options, measure
from kdcache.metrics.metric import Metric
from kdcache.metrics.table import METRICS, find_metric

__all__ = [
    "METRICS",
    "Judged",
    "Metric",
    "Network",
    "check_options",
    "fields_read",
    "find_metric",
    "input_range",
    "measure",
    "measured",
]
