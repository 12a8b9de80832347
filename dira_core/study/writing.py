"""What a study leaves: results.csv, results.json, and its tables in three formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dira_core import __version__
from dira_core.files import write_atomic
from dira_core.study.formats import html, latex, markdown
from dira_core.study.jobs import Job
from dira_core.study.omitted import omitted
from dira_core.study.places import localization_tables
from dira_core.study.plan import Study
from dira_core.study.results import (
    Outcome,
    collect,
    comparisons,
    csv_text,
    entries,
    with_all_seeds,
)
from dira_core.study.statistics import interval, spread
from dira_core.study.tables import Table, all_tables

RESULTS, TABLES = "results.json", "tables.md"

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Tables</title>
<style>body{{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{padding:.25em .7em;border-bottom:1px solid #ddd}}
.wide{{overflow-x:auto}}.note{{color:#555}}</style>
{}</html>
"""


def write_results(study: Study, jobs: Sequence[Job], folder: Path) -> list[str]:
    """Write results and tables of what is done; return the tables as lines of Markdown."""
    outcomes = collect(jobs, folder)
    tables, record = tabulated(study, jobs, outcomes)
    record["jobs"] = {"all": len(jobs), "done": sum(job.done(folder) for job in jobs)}
    text = markdown([*tables]) + "\n" + said(study, record)
    write_atomic(folder / "results.csv", csv_text(outcomes).encode())
    write_atomic(folder / RESULTS, json.dumps(record, indent=1, allow_nan=False).encode())
    write_atomic(folder / TABLES, text.encode())
    write_atomic(folder / "tables.tex", latex(tables).encode())
    write_atomic(folder / "tables.html", PAGE.format(html(tables)).encode())
    return text.splitlines()


def tabulated(
    study: Study, jobs: Sequence[Job], outcomes: Sequence[Outcome]
) -> tuple[list[Table], dict[str, Any]]:
    """Return the tables, and all their numbers as plain data."""
    whole = with_all_seeds(jobs, outcomes)
    found = entries(study, whole)
    compared = comparisons(found)
    record: dict[str, Any] = {
        "dira": __version__,
        "entries": [
            {
                **dict(zip(("target", "way", "fraction"), place, strict=True)),
                "recipe": entry.recipe,
                "arm": entry.arm,
                "percent": entry.values,
                **spread(entry.values)._asdict(),
                "interval": interval(entry.draws),
            }
            for place, several in found.items()
            for entry in several
        ],
        "comparisons": [asdict(each) for each in compared],
        "omitted": omitted(study, whole, found, compared),
        "seen_in_pretraining": seen_by_any([outcome.pretraining for outcome in outcomes]),
    }
    return [*all_tables(study, found, compared), *localization_tables(whole)], record


def seen_by_any(overlaps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the most test images, and images of patients, that a pretraining saw.

    And of how many transfers that is not known.
    """
    most = {
        key: max((overlap.get(key) or 0 for overlap in overlaps), default=0)
        for key in ("images", "patients")
    }
    unknown = [each for each in overlaps if each["images"] is None and not each.get("untrained")]
    return {**most, "unknown": len(unknown)}


def said(study: Study, record: dict[str, Any]) -> str:
    """Say below the tables what they are made of."""
    seeds = ", ".join(map(str, study.seeds))
    again = "anew for each seed" if study.pretrain_seeds == "each" else "once"
    jobs, seen = record["jobs"], record["seen_in_pretraining"]
    saw = [f"up to {seen['images']} of the test images"] if seen["images"] else []
    if seen["patients"]:
        saw += [f"patients of the same id as those of up to {seen['patients']} test images"]
    warning = f" WARNING: pretraining saw {', and '.join(saw)}." if saw else ""
    if seen["unknown"]:
        warning += f" Of {seen['unknown']} transfers it is not known whether pretraining saw some."
    missing = "".join(f"{reason}\n" for reason in record["omitted"])
    return (
        f"dira {record['dira']}; {jobs['done']} of {jobs['all']} jobs are done; seeds {seeds}; "
        f"pretrained {again}; all values in percent, mean and sample standard deviation over "
        f"seeds (none of one value).{warning}\n{missing}"
    )
