"""Tensor to fixed-width columns and back: one codec a file, each a module of pure functions (see `codec.Codec`)."""

from __future__ import annotations

from kdcache.codecs import dense, lowrank, topk
from kdcache.codecs.codec import Codec
from kdcache.codecs.fidelity import fidelity
from kdcache.codecs.targets import SparseLogits

__all__ = ["CODECS", "Codec", "SparseLogits", "fidelity"]

CODECS: dict[str, Codec] = {"dense": dense, "lowrank": lowrank, "topk": topk}
