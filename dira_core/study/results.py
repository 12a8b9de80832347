"""What the transfers of a study found: collected, written down, compared."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.errors import DataError
from dira_core.escaping import text_cell
from dira_core.study.jobs import TRANSFER, Cell, Job
from dira_core.study.localized import placed
from dira_core.study.plan import Arm, Metric, Study
from dira_core.study.predictions import Predictions
from dira_core.study.statistics import Array, hedges_g, holm, interval, t_test

Place = tuple[str, str, float]
"""Target, way and fraction: what arms are compared within."""


@dataclass(frozen=True)
class Outcome:
    """What one transfer scored, with one kind of features.

    Attributes:
        cell: Where in the grid.
        features: "fine-tune", or "plain" and "re-measured" of the frozen ways.
        scores: By name; None where not defined.
        scored: Classes whose mean is the score.
        predictions: The table of its test images.
        pretraining: What it saw of the test images, as `Overlap` records it.
        seconds: It took.
    """

    cell: Cell
    features: str
    scores: Mapping[str, float | None]
    scored: Sequence[str]
    predictions: Path
    pretraining: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Entry:
    """What tables show of one set of weights at one place: the metric of each seed.

    Attributes:
        recipe: Name of the pretraining; empty for `random` and `imagenet`.
        arm: What was pretrained.
        values: By seed, in percent.
        draws: Mean over seeds for each bootstrap draw of test patients, in percent.
    """

    recipe: str
    arm: Arm
    values: tuple[float, ...]
    draws: Array


@dataclass(frozen=True)
class Comparison:
    """One arm against another at one place; differences in percent, positive is better.

    Attributes:
        interval: Of the difference, over test patients, with weights and seeds as they are.
        p: Of the t-test over seeds; corrected over all comparisons of the study in `p_holm`.
        g: Hedges' g over seeds.
    """

    recipe: str
    arm: Arm
    against: Arm
    target: str
    way: str
    fraction: float
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    g: float | None


def collect(jobs: Sequence[Job], study: Path) -> list[Outcome]:
    """Read the results of all transfers that are done.

    Raises:
        RunFolderError: One is damaged.
    """
    found = []
    for job in jobs:
        if job.cell is None or not job.done(study):
            continue
        result = job.result(study)
        for features, scores in result["scores"].items():
            tuned = features == "fine-tune"
            table = "predictions.csv" if tuned else f"predictions-{features}.csv"
            found.append(
                Outcome(
                    job.cell,
                    features,
                    {**dict(flat(scores)), **placed(result.get("localization", {}))},
                    scores["scored"],
                    job.folder(study) / TRANSFER / table,
                    result["pretraining"],
                    result["seconds"],
                )
            )
    return found


def flat(scores: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield each number of a transfer's scores, by name."""
    for name, score in scores.items():
        if isinstance(score, Mapping) and "mean" in score:
            yield name, score["mean"]
            yield from ((f"{name} {of}", value) for of, value in score["by_class"].items())
        elif isinstance(score, float | int) and not isinstance(score, bool):
            yield name, float(score)


def csv_text(outcomes: Sequence[Outcome]) -> str:
    """Return all scores as the text of a CSV file, a line for each number."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*asdict(outcomes[0].cell), "features", "score", "value"] if outcomes else [])
    for outcome in outcomes:
        cells = [
            text_cell(each) if isinstance(each, str) else each
            for each in asdict(outcome.cell).values()
        ]
        for name, value in outcome.scores.items():
            number = "" if value is None else f"{value:.6g}"
            writer.writerow([*cells, outcome.features, text_cell(name), number])
    return file.getvalue()


def with_all_seeds(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of weights that are done with every seed."""
    wanted = Counter(replace(job.cell, seed=0) for job in jobs if job.cell is not None)
    done = Counter((replace(outcome.cell, seed=0), outcome.features) for outcome in outcomes)
    return [
        outcome
        for outcome in outcomes
        if done[alike := replace(outcome.cell, seed=0), outcome.features] >= wanted[alike]
    ]


def entries(study: Study, outcomes: Sequence[Outcome]) -> dict[Place, list[Entry]]:
    """Return what the tables show, by place; weights without a score of a seed are left out.

    Raises:
        DataError: Transfers of one place met other test images.
    """
    grouped: dict[Place, dict[tuple[str, Arm], list[Outcome]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for outcome in tabled(study, outcomes):
        cell = outcome.cell
        grouped[cell.target, cell.way, cell.fraction][cell.recipe, cell.arm].append(outcome)
    found: dict[Place, list[Entry]] = {}
    for place, arms in grouped.items():
        images: list[str] = []
        for (recipe, arm), seeds in arms.items():
            metric = metric_of(study, seeds[0])
            values = [outcome.scores.get(metric) for outcome in seeds]
            if None in values:
                continue
            tables = [Predictions(outcome.predictions) for outcome in seeds]
            images = images or tables[0].images
            if any(table.images != images for table in tables):
                raise DataError(
                    f"{place[0]}: transfers met different test images, the data changed meanwhile: "
                    "use another --out"
                )
            draws = np.mean([table.draws(metric, seeds[0].scored) for table in tables], 0)
            known = tuple(100 * value for value in values if value is not None)
            found.setdefault(place, []).append(Entry(recipe, arm, known, 100 * draws))
    return found


def tabled(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of those features that tables show."""
    return [
        outcome
        for outcome in outcomes
        if outcome.features in ("fine-tune", study.targets[outcome.cell.target].features)
    ]


def metric_of(study: Study, outcome: Outcome) -> Metric:
    """Return what tables show of a target."""
    by_kind: Metric = "auc" if "auc" in outcome.scores else "dice_per_image"
    return study.targets[outcome.cell.target].metric or by_kind


def comparisons(found: Mapping[Place, Sequence[Entry]]) -> list[Comparison]:
    """Compare every arm with those before it, at each place; p is corrected over all of them."""
    compared = [
        _compared(place, entry, other)
        for place, several in found.items()
        for other, entry in itertools.combinations(several, 2)
        if not other.recipe or other.recipe == entry.recipe
    ]
    tested = [each.p for each in compared if each.p is not None]
    corrected = iter(holm(tested))
    return [each if each.p is None else replace(each, p_holm=next(corrected)) for each in compared]


def _compared(place: Place, entry: Entry, other: Entry) -> Comparison:
    return Comparison(
        entry.recipe,
        entry.arm,
        other.arm,
        *place,
        float(np.mean(entry.values) - np.mean(other.values)),
        interval(entry.draws - other.draws),
        t_test(entry.values, other.values),
        None,
        hedges_g(entry.values, other.values),
    )
