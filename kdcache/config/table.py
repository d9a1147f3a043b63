"""What every table of a recipe is, and the kinds of values that several share."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Arguments", "Fraction", "Name", "Positive", "Precision", "Seed", "Table"]

Positive = Annotated[int, Field(gt=0, lt=2**40)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "fp16", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _as_json(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments are written into plans and weights files, which are JSON: no dates, no NaN."""
    try:
        json.dumps(args, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"arguments are numbers, strings, booleans, lists and tables of these: {error}") from error
    return args


Arguments = Annotated[dict[str, Any], AfterValidator(_as_json)]


class Table(BaseModel):
    """A table of the recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
