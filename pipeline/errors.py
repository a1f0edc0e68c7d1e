"""The errors a user can cause or mend; each is also a builtin.

A message names what, the value seen, what was expected, where, and the remedy, in one line.
Only the command line turns them into that line and `exit_code`; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno


class SerenoError(Exception):
    """A fault of the input, the settings or the surroundings, not of the code."""

    exit_code = 1


class ConfigError(SerenoError, ValueError):
    """A setting is unknown, of the wrong type or contradicts another."""

    exit_code = 2


class DataError(SerenoError, ValueError):
    """A product, scene or patch cannot be used as it is."""

    exit_code = 3


class MissingError(SerenoError, LookupError):
    """A file, folder, item, asset or band that is needed is not there."""

    exit_code = 4


class CatalogueError(SerenoError, ConnectionError):
    """A catalogue does not answer, or answers against its specification."""

    exit_code = 5


class PermanentError(CatalogueError):
    """A catalogue lacks what is asked for, or may be asked no more: trying again does not help."""

    exit_code = 8


class StoreError(SerenoError, OSError):
    """A store is incomplete, damaged, or cannot be written."""

    exit_code = 6


class TrainingError(SerenoError, RuntimeError):
    """Training cannot go on: non-finite loss, unusable checkpoint, empty split."""

    exit_code = 7


def describe_fault(error: OSError) -> str:
    """What the operating system says, and what helps."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{error.strerror}; {'free space' if full else 'make it writable'} or choose another folder, then run again"
