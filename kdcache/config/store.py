"""[store], [fields], [stores]: how a store is laid out, and how each field is kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdcache.config.table import Fraction, Positive, Seed, Table
from kdcache.config.views import ViewsConfig

__all__ = ["BudgetConfig", "FieldConfig", "StoreConfig", "VariantConfig"]


class StoreConfig(Table):
    """How the store is laid out on disk."""

    format: Literal["parquet", "hdf5"] = "parquet"
    compression: Literal["none", "lz4", "zstd", "deflate"] = "none"
    unit_rows: Positive = 8192
    block_rows: Positive = 1024
    order: Literal["shuffled", "source"] = "shuffled"
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> StoreConfig:
        if self.unit_rows % self.block_rows:
            raise ValueError(f"unit_rows = {self.unit_rows} must be a multiple of block_rows = {self.block_rows}")
        allowed = {"parquet": ("none", "lz4", "zstd"), "hdf5": ("none", "deflate")}[self.format]
        if self.compression not in allowed:
            raise ValueError(f"compression = {self.compression!r} is not for {self.format}: take one of {allowed}")
        return self


class BudgetConfig(Table):
    """What a stored field may cost; the smallest codec that meets it is chosen by measuring on the teacher itself."""

    max_kl: Annotated[float, Field(gt=0)] | None = Field(None, description="nats a row, KL(teacher ‖ decoded)")
    at_temperature: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        (1.0, 2.0, 4.0), min_length=1, description="where max_kl holds, and where codecs are compared"
    )
    max_bytes: Positive | None = Field(None, description="bytes a row, before compression")

    @model_validator(mode="after")
    def _some_bound(self) -> BudgetConfig:
        if self.max_kl is None and self.max_bytes is None:
            raise ValueError("give max_kl, max_bytes or both")
        return self


class FieldConfig(Table):
    """How one field is stored. Which of the keys a codec takes, and their bounds, is the codec's to say."""

    codec: Literal["dense", "quant", "lowrank", "topk", "sampled", "threshold"] | None = Field(
        None, description="default dense, in float16 for logits; with a budget it is chosen"
    )
    budget: BudgetConfig | None = None
    dtype: Literal["float32", "float16", "bfloat16", "uint8"] | None = None
    k: Positive | None = Field(None, description="topk, threshold: classes kept a row")
    mass: Fraction | None = Field(None, description="topk: keep as many as reach this probability, at most k")
    anchor: Annotated[float, Field(gt=1)] | None = Field(
        None, description="topk: one more temperature at which the tail's mass is exact"
    )
    bytes: Positive | None = Field(None, description="lowrank: of a row")
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="lowrank: those that rounding is for; topk: where the tail is exact"
    )
    bits: Literal[4, 8] | None = Field(None, description="quant")
    per: Literal["row", "channel"] | None = Field(None, description="quant: what shares one scale")
    draws: Positive | None = Field(None, description="sampled: draws a row")
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="sampled, threshold: the one that the estimate is for"
    )
    seed: Seed | None = Field(None, description="sampled, threshold: of the draws")
    pool: Positive | None = Field(None, description="feature maps: average-pooled to this side before they are stored")
    project: Positive | None = Field(None, description="feature maps: channels after a fixed projection")
    projection: Literal["random", "pca"] | None = Field(None, description="feature maps: of which kind")
    attention: bool = Field(False, description="feature maps: only the mean over channels of the squares")

    def configuration(self) -> dict[str, Any]:
        """The keys that were given and that a codec reads."""
        others = {"codec", "budget", "pool", "project", "projection", "attention"}
        return self.model_dump(exclude=others, exclude_none=True)


class VariantConfig(Table):
    """One of several stores of the same teacher and rows, for comparing codecs; `fields` replace those of [fields]."""

    fields: dict[str, FieldConfig] = Field(default_factory=dict)
    views: ViewsConfig | None = Field(None, description="in place of the recipe's [views]")
