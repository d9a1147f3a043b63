"""The recipe's tables as checked values. What a key means is said here, once; `kdcache recipes --keys` prints it."""

from __future__ import annotations

from kdcache.config.networks import InputConfig, ObjectiveConfig, StudentConfig, TeacherConfig
from kdcache.config.recipe import Recipe
from kdcache.config.source import SourceConfig
from kdcache.config.store import BudgetConfig, FieldConfig, StoreConfig, VariantConfig
from kdcache.config.train import EarlyStopping, TrainConfig

__all__ = [
    "BudgetConfig",
    "EarlyStopping",
    "FieldConfig",
    "InputConfig",
    "ObjectiveConfig",
    "Recipe",
    "SourceConfig",
    "StoreConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "VariantConfig",
]
