"""Are the processes of a run about to do the same?"""

from __future__ import annotations

from typing import Any

from dira_core import toml
from dira_core.distributed import gathered
from dira_core.environment import versions
from dira_core.errors import RecipeError
from dira_core.settings import Settings

MOST_LISTED = 8
"""Differing keys a message lists."""


def agree(settings: Settings, **facts: str) -> None:
    """Compare settings, versions and other facts of all processes, before the first step.

    Args:
        settings: Of the run.
        facts: For example the fingerprint of the data.

    Raises:
        RecipeError: They differ; the message lists the keys, and what each process has.
    """
    known = {**settings.model_dump(mode="json"), "versions": versions(), **facts}
    everyone = gathered({".".join(path): value for path, value in toml.leaves(known)})
    keys = sorted({key for each in everyone for key in each})
    differing = [
        key for key in keys if any(each.get(key) != everyone[0].get(key) for each in everyone)
    ]
    if differing:
        shown = "; ".join(_listed(key, everyone) for key in differing[:MOST_LISTED])
        more = f"; and {len(differing) - MOST_LISTED} more" if len(differing) > MOST_LISTED else ""
        raise RecipeError(
            f"the processes of a run must agree, and differ in {shown}{more}: start all of them "
            "with the same command, versions and data"
        )


def _listed(key: str, everyone: list[dict[str, Any]]) -> str:
    found = {rank: str(each.get(key))[:60] for rank, each in enumerate(everyone)}
    other = next(
        rank for rank, value in found.items() if value != found[0] or rank == len(found) - 1
    )
    return f"{key} (rank 0: {found[0]}, rank {other}: {found[other]})"
