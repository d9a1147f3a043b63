"""What every network of transformers needs: the library itself, its silence, and its configuration's known fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kdcache.errors import MissingExtra, UsageError
from kdcache.near_misses import near_misses

__all__ = ["check_fields", "library", "quiet"]


def library(name: str) -> Any:
    """The module transformers; MissingExtra, naming the model hf:`name`, where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf", f"the model hf:{name}") from error
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No remarks and no bars of the library while it builds a model."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def check_fields(name: str, args: Mapping[str, Any], usual: Iterable[str]) -> None:
    """UsageError for a key that is no field: configurations ignore those, so a misspelt one has to be found here."""
    for key in args:
        if key not in usual:
            raise UsageError(f"hf:{name}: args.{key} is no field of its configuration; {near_misses(key, usual)}")
