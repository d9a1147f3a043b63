"""Metrics of a user's own, for the tests of how they are found and called."""

from __future__ import annotations

from kdcache.metrics import Judged, Metric

__all__ = ["BIAS", "NUMBER", "broken", "labels", "none", "scaled", "wrong"]

NUMBER = 3


def labels(judged: Judged) -> dict[str, float]:
    return {"labels": float((judged.rows["label"] >= 0).sum()), "rows": float(len(judged.rows["label"]))}


def scaled(judged: Judged, *, factor: float = 2.0) -> dict[str, float]:
    return {"scaled": factor * len(judged.rows["label"])}


def bias(judged: Judged) -> dict[str, float]:
    return {"bias": float((judged.outputs["logits"] - judged.rows["target"]).mean())}


def broken(judged: Judged) -> dict[str, float]:
    raise ZeroDivisionError("of its own")


def wrong(judged: Judged) -> list[float]:
    return [1.0]


def none(judged: Judged) -> dict[str, float | None]:
    return {"none": None}


BIAS = Metric(bias, ("target",), ("bias",), higher=False)
