"""Views: deterministic augmentations with recorded parameters, replayed bit for bit.

Drawing and checking need numpy alone; what needs torch is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdcache.views.parameters import draw
from kdcache.views.spec import ViewsSpec, views_json

if TYPE_CHECKING:
    from kdcache.views.images import check_parameters, own_share, replay, replay_batch

__all__ = ["ViewsSpec", "check_parameters", "draw", "own_share", "replay", "replay_batch", "views_json"]

_LATER = ("check_parameters", "own_share", "replay", "replay_batch")


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'kdcache.views' has no attribute {name!r}")
    return getattr(import_module("kdcache.views.images"), name)
