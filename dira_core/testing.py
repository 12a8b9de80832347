"""For plugin authors and their tests: tiny parts, and checks that a component keeps its word."""

from __future__ import annotations

from typing import Any

from dira_core.checking import check as check
from dira_core.checking import half as half
from dira_core.components import Choice, Kind
from dira_core.plugins import installed
from dira_core.tiny import TinyBackbone as TinyBackbone
from dira_core.tiny import TinySource as TinySource
from dira_core.tiny import tiny_batch as tiny_batch
from dira_core.worlds import check_world_size as check_world_size


def choice(kind: Kind, name: str, **options: Any) -> Choice:
    """Return a chosen component with some options, for building by hand."""
    component = installed().find(kind, name)
    return Choice(name, component.options(**options))
