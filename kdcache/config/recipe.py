"""A whole recipe."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from kdcache.config.networks import ObjectiveConfig, StudentConfig, TeacherConfig
from kdcache.config.source import SourceConfig
from kdcache.config.store import FieldConfig, StoreConfig, VariantConfig
from kdcache.config.table import Arguments, Name, Table
from kdcache.config.train import TrainConfig
from kdcache.config.views import ViewsConfig

__all__ = ["Recipe"]


class Recipe(Table):
    """A whole experiment."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    source: SourceConfig
    eval_source: SourceConfig | None = None
    store: StoreConfig = StoreConfig()
    teacher: TeacherConfig | None = None
    teachers: dict[Name, TeacherConfig] = Field(
        default_factory=dict, description="several, each with a store of its own"
    )
    fields: dict[str, FieldConfig] = Field(default_factory=dict)
    views: ViewsConfig | None = None
    stores: dict[Name, VariantConfig] = Field(
        default_factory=dict, description="several stores of the one teacher; with [teachers], what differs in one's"
    )
    student: StudentConfig | None = None
    students: dict[Name, StudentConfig] = Field(default_factory=dict)
    objective: tuple[ObjectiveConfig, ...] = ()
    baseline: tuple[ObjectiveConfig, ...] = Field((), description="what a student alone learns from; default ce")
    metrics: tuple[str, ...] = Field(
        (), description="what networks are judged by, the first is compared; default accuracy, or perplexity of tokens"
    )
    metric_options: Arguments = Field(default_factory=dict, description="what the metrics are told, by their arguments")
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.teacher and self.teachers:
            raise ValueError("give [teacher] or [teachers], not both")
        if self.grid and len(self.students) > 1:
            raise ValueError("[grid] multiplies one student, and several are named in [students]")
        if self.teachers and (strange := self.stores.keys() - self.teachers.keys()):
            raise ValueError(f"stores.{min(strange)}: with [teachers] there is one store each: {sorted(self.teachers)}")
        self._check_fields()
        return self

    def _check_fields(self) -> None:
        every = [self.teacher] if self.teacher else list(self.teachers.values())
        known = {"logits", *(name for teacher in every for name in (*teacher.taps, *teacher.outputs))}
        tables = {"fields": self.fields, **{f"stores.{name}.fields": one.fields for name, one in self.stores.items()}}
        for table, fields in tables.items():
            for name in fields:
                if name not in known:
                    raise ValueError(f"{table}.{name}: the teacher gives {sorted(known)}; a feature map needs a tap")
            if not every and fields:
                raise ValueError(f"[{table}] is given but there is no [teacher] to fill them")
