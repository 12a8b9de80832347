"""What tables of a study do not show, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dira_core.escaping import first_few
from dira_core.study.plan import Study
from dira_core.study.results import (
    Comparison,
    Entry,
    Outcome,
    Place,
    metric_of,
    tabled,
)


def omitted(
    study: Study,
    outcomes: Sequence[Outcome],
    found: Mapping[Place, Sequence[Entry]],
    compared: Sequence[Comparison],
) -> list[str]:
    """Say what is missing though its jobs are done, a reason each.

    Args:
        study: The plan.
        outcomes: Of weights that are done with every seed.
        found: Entries by place.
        compared: All comparisons.
    """
    undefined = dict[str, dict[str, None]]()
    for outcome in tabled(study, outcomes):
        cell, metric = outcome.cell, metric_of(study, outcome)
        arm = f"{cell.recipe} {cell.arm}".strip()
        name = f"{arm} of {cell.target} {cell.way} {cell.fraction:.3g}"
        if outcome.scores.get(metric) is not None:
            continue
        if metric in outcome.scores:
            why = f"{metric} is not defined, the test images show one side of each class alone"
        else:
            why = f"there is no {metric} of this task, change targets.{cell.target}.metric"
        undefined.setdefault(why, {})[name] = None
    reasons = [f"left out: {first_few(of)} ({why})" for why, of in undefined.items()]
    if found and not compared:
        several = (f"{entry.recipe} {entry.arm}".strip() for of in found.values() for entry in of)
        arms = ", ".join(dict.fromkeys(several))
        reasons.append(
            f"nothing is compared: a comparison needs two arms of one task, and only {arms} has "
            "values, which are in results.json (add arms to the study for tables)"
        )
    return reasons
