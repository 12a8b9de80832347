"""The table of localisation: where classifiers look that were fine-tuned on labels alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dira_core.study.localized import POINTING
from dira_core.study.results import Outcome
from dira_core.study.statistics import spread
from dira_core.study.tables import Table, Text


def localization_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Return the table, or none where nothing was localised."""
    grouped = defaultdict[tuple[str, str], list[Outcome]](list)
    for outcome in outcomes:
        if POINTING in outcome.scores:
            cell = outcome.cell
            task, arm = f"{cell.target} {cell.fraction:.3g}", f"{cell.recipe} {cell.arm}".strip()
            grouped[task, arm].append(outcome)
    if not grouped:
        return []
    names = [name for name in next(iter(grouped.values()))[0].scores if name.startswith(POINTING)]
    rows = [
        [Text(task), Text(arm), *(_cell([seed.scores[name] for seed in seeds]) for name in names)]
        for (task, arm), seeds in grouped.items()
    ]
    header = ["Task", "Arm", "pointing", *(name.removeprefix(f"{POINTING} ") for name in names[1:])]
    note = (
        "Grad-CAM against the boxes of experts, in percent: images whose hottest pixel lies in the "
        "finding; by chance, if it lay anywhere; images with a box above the threshold "
        "(ChestX-ray8 protocol, cut at 60 and 180 of 255). Mean and standard deviation over seeds."
    )
    return [Table("Table 7: localisation", header, rows, note)]


def _cell(values: Sequence[float | None]) -> Text:
    known = [100 * value for value in values if value is not None]
    if not known:
        return Text("-")
    mean, std = spread(known)
    return Text(f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}"))
