"""The loader: batches from stores in an order that is a pure function of store, seed, epoch and lanes."""

from kdcache.loader.order import Order
from kdcache.loader.stream import StreamingLoader

__all__ = ["Order", "StreamingLoader"]
