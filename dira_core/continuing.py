"""What may change in a recipe whose run is continued, and what may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dira_core.recipe import Recipe

CHANGEABLE = (
    *("loader.", "log.", "checkpoint.", "health."),
    *("train.strategy", "train.recompute", "train.compile", "train.timeout_s"),
)
"""What a resume may change: it decides nothing about the weights but how sums are rounded."""


def changed_for_good(before: Recipe, after: Recipe) -> list[str]:
    """Return the keys that differ and that a resume must not change."""
    changed = differing(before.model_dump(), after.model_dump())
    return [key for key in changed if not key.startswith(CHANGEABLE)]


def differing(a: Mapping[str, Any], b: Mapping[str, Any], above: str = "") -> list[str]:
    """Return the key paths at which two nested mappings differ."""
    found = []
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            found += differing(x, y, f"{above}{key}.")
        elif x != y:
            found.append(f"{above}{key}")
    return sorted(found)
