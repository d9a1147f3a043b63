"""Whole experiments: what a recipe names, stage by stage, each stage a process of its own."""

from kdcache.recipe.run import run_recipe

__all__ = ["run_recipe"]
