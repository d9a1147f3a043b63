"""Every error that kdcache raises on purpose.

* KdcacheError                     exit 70 (a bug of ours, if it is raised bare)
  + UsageError                     exit 64  a recipe, option, name or shape that cannot work
    - MissingExtra                          an optional library is not installed
  + DataError                      exit 65  data that is not what it says it is
    - SourceError                           a source file: absent, short, of another kind, out of range
    - MissingData                           a known dataset that has not been fetched
    - TeacherError                          the teacher gave NaN or infinity, or raised
    - CheckpointError                       a run's folder: unfinished, damaged, of another recipe
    - StoreError                            a store
      . StoreUnfinished                     no manifest yet
      . StoreDamaged                        bytes that do not match their digest, or no longer parse
      . StoreMismatch                       another plan, another order, another version than asked for
  + StorageError                   exit 74  the disk or network failed: full, read-only, absent
  + Interrupted                    exit 75  stopped on request; run the same command again to go on
  + TrustError                     exit 77  refused because following it could do harm

A message names the place, both sides of the mismatch, and the cure.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DataError",
    "Interrupted",
    "KdcacheError",
    "MissingData",
    "MissingExtra",
    "SourceError",
    "StorageError",
    "StoreDamaged",
    "StoreError",
    "StoreMismatch",
    "StoreUnfinished",
    "TeacherError",
    "TrustError",
    "UsageError",
]


class KdcacheError(Exception):
    """Base of all errors of kdcache; `exit_code` is what the command line exits with."""

    exit_code = 70


class UsageError(KdcacheError, ValueError):
    """A recipe, option, name or shape that cannot work, found before any work was done."""

    exit_code = 64


class MissingExtra(UsageError, ImportError):
    """An optional library is not installed; the message gives the command that installs it."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed: run `pip install 'kdcache[{extra}]'`")
        self._given = library, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        """Errors of a stage reach us from another process."""
        return type(self), self._given


class DataError(KdcacheError):
    """Data that is not what it says it is."""

    exit_code = 65


class SourceError(DataError):
    """A source's file is absent, short, of another kind, or holds a value out of range."""


class MissingData(SourceError, FileNotFoundError):
    """A dataset that the registry knows is not on this machine yet."""


class TeacherError(DataError):
    """The teacher gave NaN or infinity, or raised, for the samples that the message names."""


class CheckpointError(DataError):
    """A run's folder is unfinished, damaged, or was made from another recipe or store."""


class StoreError(DataError):
    """Something is wrong with a store."""


class StoreUnfinished(StoreError):
    """The store has no manifest yet: its dump has not finished."""


class StoreDamaged(StoreError):
    """Bytes of the store do not match their digest, or can no longer be parsed."""


class StoreMismatch(StoreError):
    """The store is another than the one asked for: its plan, order, fields or format version differ."""


class StorageError(KdcacheError, OSError):
    """The disk or the network failed: full, read-only, absent."""

    exit_code = 74


class Interrupted(KdcacheError):
    """Stopped on request (SIGINT, SIGTERM); what was committed is kept, the same command goes on."""

    exit_code = 75


class TrustError(KdcacheError):
    """Refused because following it could do harm: a name, link or code reference from a stranger."""

    exit_code = 77
