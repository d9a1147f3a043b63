"""Views: deterministic augmentations with recorded parameters, replayed bit for bit."""

from __future__ import annotations

__all__: list[str] = []
