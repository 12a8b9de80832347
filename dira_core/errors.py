"""Every error a user can mend, in one tree.

    DiraError                   exit code 2
    ├── RecipeError             2   a key, value or component that does not exist or does not fit
    ├── RunFolderError          2   the run folder is in use, or holds something else
    ├── DataError               3   nothing readable, or too much of it unreadable
    ├── StorageError            3   where the data are does not answer
    ├── CheckpointError         3   no checkpoint can be trusted
    ├── PluginError             4   a plugin is broken, or raised
    ├── DivergedError           5   the loss is not finite, or a health policy said stop
    ├── ResourceError           6   no memory or no disk space left
    ├── PeerError               7   another process of the run died or hangs
    └── DifferenceError         8   a replay of a run gave other bits

A message is one line in lower case: the rule, the value got, the way out. `assert` means our own
bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiraError(Exception):
    """Say what a user can mend; the command line prints it plainly and exits."""

    exit_code = 2


class RecipeError(DiraError):
    """A key, a value or a component name in the recipe does not exist or does not fit."""


class RunFolderError(DiraError):
    """The run folder is in use by another process, or holds something else."""


class DataError(DiraError):
    """Nothing is readable, or more is unreadable than the recipe allows."""

    exit_code = 3


class StorageError(DiraError):
    """Where the data are does not answer: nothing is said of the data themselves."""

    exit_code = 3


class CheckpointError(DiraError):
    """No checkpoint can be trusted, or it belongs to another recipe."""

    exit_code = 3


class PluginError(DiraError):
    """A plugin is broken, or raised while it was in charge."""

    exit_code = 4


class DivergedError(DiraError):
    """The loss is not finite, or a health policy said stop."""

    exit_code = 5


class ResourceError(DiraError):
    """No memory or no disk space is left."""

    exit_code = 6


class PeerError(DiraError):
    """Another process of the run died, or does not answer."""

    exit_code = 7


class DifferenceError(DiraError):
    """A replay of a run gave other bits than the run."""

    exit_code = 8


def error_of(code: int, message: str) -> DiraError:
    """Return the error that ended another process with an exit code."""
    kinds = [kind for kind in DiraError.__subclasses__() if kind.exit_code == code]
    return (kinds[0] if kinds else DiraError)(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f", did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
