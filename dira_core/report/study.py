"""The report of a study: tables, intervals, its pretrainings, costs, provenance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dira_core.report.charts import Interval, intervals
from dira_core.report.page import Chart, Page, Pictures, Section, png
from dira_core.report.run import keys, sections
from dira_core.study.formats import html
from dira_core.study.jobs import LOCALIZED, RUN, Job, jobs_of
from dira_core.study.plan import kept
from dira_core.study.results import collect
from dira_core.study.writing import said, tabulated
from dira_core.transfer.localize import OVERLAYS


def study_page(folder: Path) -> Page:
    """Return the report of a study, of what is done so far.

    Raises:
        DiraError: A recipe or a task of it cannot be resolved here.
    """
    study = kept(folder)
    jobs = jobs_of(study)
    tables, record = tabulated(study, jobs, collect(jobs, folder))
    record["jobs"] = {"all": len(jobs), "done": sum(job.done(folder) for job in jobs)}
    parts = [
        Section("Tables", tables=Markup(html(tables))),
        Section(
            "Intervals over test patients",
            note="Mean over seeds, in percent; 95 % of 2000 bootstrap draws of test patients.",
            charts=[*interval_charts(record["entries"])],
        ),
        *heat_maps(jobs, folder),
        Section("Costs", facts=[*costs(jobs, folder)]),
        *pretrainings(jobs, folder),
        Section("Study", facts=[*keys(study.model_dump(mode="json"))]),
        Section("What each transfer started from", facts=[*starts(jobs, folder)]),
    ]
    return Page(f"Study {folder.name}", said(study, record), parts)


def interval_charts(entries: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Draw the arms of each task beside each other."""
    by_place = defaultdict[str, list[Interval]](list)
    for entry in entries:
        name = f"{entry['recipe']} {entry['arm']}".strip()
        place = f"{entry['target']}, {entry['way']}, {entry['fraction']:.3g} of the labels"
        by_place[place].append(Interval(name, entry["mean"], entry["interval"]))
    for place, found in by_place.items():
        yield Chart(place, Markup(intervals(found)))


def heat_maps(jobs: Sequence[Job], folder: Path) -> Iterator[Section]:
    """Yield Grad-CAM of the first seed of each arm, where the study asked for it."""
    by_place = defaultdict[str, dict[str, Path]](dict)
    for job in jobs:
        overlays = job.folder(folder) / LOCALIZED / OVERLAYS
        if job.cell is not None and overlays.is_dir():
            place = f"{job.cell.target}, {job.cell.fraction:.3g} of the labels"
            arm = f"{job.cell.recipe} {job.cell.arm}".strip()
            by_place[place].setdefault(arm, overlays)
    found = []
    for place, arms in by_place.items():
        columns = [[png(path) for path in sorted(of.glob("*.png"))] for of in arms.values()]
        found.append(Pictures(place, [*arms], [*zip(*columns, strict=False)]))
    if found:
        note = "Green: boxes of experts; white: boxes found. Learned from labels of images alone."
        yield Section("Grad-CAM", note, pictures=found, wide=True)


def costs(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield how long jobs took, by kind."""
    took = defaultdict[str, list[float]](list)
    for job in jobs:
        if job.done(folder):
            seconds = job.result(folder)["seconds"]
            kind = "pretrain" if job.cell is None else f"{job.cell.target} {job.cell.way}"
            took[kind].append(seconds)
    for kind, seconds in took.items():
        whole = sum(seconds)
        yield kind, f"{len(seconds)} jobs, {whole / 60:.1f} min, {whole / len(seconds):.0f} s each"


def pretrainings(jobs: Sequence[Job], folder: Path) -> Iterator[Section]:
    """Yield curves, health and pictures of each pretraining."""
    for job in jobs:
        run = job.folder(folder) / RUN
        if job.cell is None and job.done(folder):
            for section in sections(run):
                yield replace(section, title=f"{job.name}: {section.title}")


def starts(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the digests of the weights that were measured."""
    for job in jobs:
        if job.cell is not None and job.done(folder):
            found = job.result(folder)["weights"]
            digests = ", ".join(f"{k} {v}" for k, v in (found["sha256"] or {}).items())
            yield job.name, digests or str(found["weights"])
