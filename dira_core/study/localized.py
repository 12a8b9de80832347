"""How well heat maps of fine-tuned classifiers point: the scores `dira localize` adds to a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POINTING = "localization"
"""Part of the images whose hottest pixel lies within the finding; how its other scores start."""


def placed(findings: Mapping[str, Any]) -> dict[str, float]:
    """Return how well heat maps point and fit, over all findings; empty without truth."""
    if not findings:
        return {}
    over = findings.get("all") or next(iter(findings.values()))
    found = {POINTING: over["pointing"], f"{POINTING} by chance": over["pointing_by_chance"]}
    for kind in ("iobb", "iou"):
        for threshold, acc in zip(over[kind]["thresholds"], over[kind]["acc"], strict=True):
            found[f"{POINTING} {kind} > {threshold:g}"] = acc
    return found
