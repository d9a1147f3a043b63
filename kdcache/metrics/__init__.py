"""Metrics: what networks are judged by; plain functions over what a network said of every evaluation row."""

from __future__ import annotations

__all__: list[str] = []
