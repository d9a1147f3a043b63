"""kdcache: run an expensive teacher once, keep its soft labels in a store, fit many students from it.

from kdcache import StreamingLoader, open_store

with open_store("store/") as store:
    for batch in StreamingLoader(store, batch_size=256):
        batch["input"], batch["logits"], batch["label"], batch["id"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.codecs import SparseLogits
    from kdcache.loader import StreamingLoader
    from kdcache.store import StoreReader, open_store, verify

__all__ = ["SparseLogits", "StoreReader", "StreamingLoader", "__version__", "open_store", "verify"]

__version__ = "0.1.0"

# Loaded when first used: `import kdcache` must not wait for torch.
_LATER = {
    "SparseLogits": "kdcache.codecs",
    "StoreReader": "kdcache.store",
    "StreamingLoader": "kdcache.loader",
    "open_store": "kdcache.store",
    "verify": "kdcache.store",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
