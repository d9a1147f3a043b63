"""Tensor to fixed-width columns and back: one codec a file, each a module of pure functions (see `codec.Codec`)."""

from __future__ import annotations

from kdcache.codecs import dense, lowrank, quant, sampled, threshold, topk
from kdcache.codecs.codec import Codec
from kdcache.codecs.fidelity import fidelity
from kdcache.codecs.targets import QuantisedLogits, SampledLogits, SparseLogits, Targets, flat

__all__ = ["CODECS", "Codec", "QuantisedLogits", "SampledLogits", "SparseLogits", "Targets", "fidelity", "flat"]

CODECS: dict[str, Codec] = {
    "dense": dense,
    "lowrank": lowrank,
    "quant": quant,
    "sampled": sampled,
    "threshold": threshold,
    "topk": topk,
}
