"""Who is told what a run does: a display, for a person, and the plugins that observe."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

import pluggy

from dira_core.distributed import rank
from dira_core.errors import DiraError, PluginError
from dira_core.types import Progress

logger = logging.getLogger("dira")


class Display(Protocol):
    """Where a run is watched: a terminal, a notebook, nowhere."""

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Show a logged step."""

    def said(self, message: str) -> None:
        """Show one line: an alarm, a checkpoint, a resume."""


class Silent:
    """Show nothing."""

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Show nothing."""

    def said(self, message: str) -> None:
        """Hand the line to the "dira" logger."""
        logger.info(message)


def observe(call: pluggy.HookCaller, **event: Any) -> None:
    """Tell every plugin that observes an event; of several processes the first one does.

    Raises:
        PluginError: One of them raised; the message names it.
    """
    if rank() > 0:
        return
    try:
        call(**event)
    except DiraError:
        raise
    except Exception as error:
        ran = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
        blamed = [i for i in call.get_hookimpls() if getattr(i.function, "__code__", None) in ran]
        raise PluginError(
            f"{' and '.join(repr(i.plugin_name) for i in blamed)} raised in {call.name} "
            f"({type(error).__name__}: {error}): report it to its authors, or leave it out of "
            "DIRA_PLUGINS"
        ) from error
