"""The report of a run: curves, health, gradients, pictures, costs, provenance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dira_core import toml
from dira_core.errors import DiraError
from dira_core.files import digest
from dira_core.health import SIGNS
from dira_core.lines import parsed, read_lines
from dira_core.report.charts import Points, curves
from dira_core.report.page import Chart, Page, Section
from dira_core.report.pictures import pictures
from dira_core.revival import parts_of
from dira_core.runfolder import ENVIRONMENT, RECIPE, STATUS

METRICS = "metrics.jsonl"

Series = Mapping[str, Points]

HEALTH = (
    ("Spread of embeddings (1 healthy, 0 collapsed)", ("embedding/std",)),
    ("Effective rank of embeddings", ("embedding/rank",)),
    ("Restoration error", ("restoration/error", "restoration/input_error")),
    ("Spread of restored images", ("restoration/spread",)),
    ("Mean score of the critic", ("critic/real", "critic/fake")),
)


def run_page(folder: Path) -> Page:
    """Return the report of a run.

    Raises:
        RunFolderError: Its logs are damaged.
    """
    status = stored(folder / STATUS)
    said = f"{status.get('status', 'not started')} {status.get('reason', '')}".strip()
    lines = [line for part in parts_of(folder) for line in read_lines(part / METRICS)]
    alarms = [told(line) for line in lines if "alarm" in line]
    recipe = Section("Recipe", facts=[*keys(toml.read(folder / RECIPE))])
    return Page(f"Run {folder.name}", f"dira run, {said}.", [*sections(folder), recipe], alarms)


def told(line: Mapping[str, Any]) -> str:
    """Say what an alarm in the log means, and what to try."""
    meant = [
        f": {sign.says}; likely {sign.cause}; try {sign.remedy}"
        for sign in SIGNS
        if sign.name == line["alarm"]
    ]
    return f"{line['alarm']} since step {line.get('since')}{''.join(meant)}"


def sections(folder: Path) -> Iterator[Section]:
    """Yield the parts of a run's report; curves stage by stage."""
    parts = parts_of(folder)
    for part in parts:
        yield from course(part, f"Stage {part.name}: " if len(parts) > 1 else "")
    try:
        yield Section("Pictures", pictures=pictures(folder))
    except DiraError as error:
        yield Section("Pictures", note=f"Left out: {error}")
    yield Section("Before and after", facts=[*before_and_after(stored(folder / "summary.json"))])
    speed = collected(read_lines(parts[-1] / "speed.jsonl"))
    yield Section("Costs", facts=costs(folder), charts=[*chart_each(speed, speed)])
    yield Section("Provenance", facts=[*provenance(folder, parts[-1])])


def course(part: Path, prefix: str) -> Iterator[Section]:
    """Yield the curves of a run, or of a stage of it."""
    series = collected(read_lines(part / METRICS))
    losses = [name for name in series if name.startswith("losses/")]
    yield Section(f"{prefix}Losses", charts=[*chart_each(series, losses)])
    yield Section(f"{prefix}Gradients at the backbone", charts=[*gradients(series)])
    health = [(title, names) for title, names in HEALTH if any(n in series for n in names)]
    charts = [chart(title, series, names) for title, names in health]
    yield Section(f"{prefix}Health", charts=charts)


def collected(lines: Iterable[Mapping[str, Any]]) -> Series:
    """Return the curve of each number in lines of JSON."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float) and name not in ("step", "epoch", "since"):
                found[name].append((float(line.get("step", 0)), float(value)))
    return found


def chart(title: str, series: Series, names: Sequence[str], *, log: bool = False) -> Chart:
    """Draw some of the curves into one chart."""
    drawn = curves({name: series[name] for name in names if name in series}, log=log)
    return Chart(title, Markup(drawn))


def chart_each(series: Series, names: Sequence[str] | Series) -> Iterator[Chart]:
    """Draw curves, each into a chart of its own."""
    for name in names:
        yield chart(name, series, [name])


def gradients(series: Series) -> Iterator[Chart]:
    """Draw how hard the objectives pull, and whether they agree."""
    names = [name for name in series if name.startswith("gradients/")]
    angles = [name for name in names if "/cos_" in name]
    norms = [name for name in names if name not in angles]
    if norms:
        yield chart("Norm of each weighted objective (logarithmic)", series, norms, log=True)
    if angles:
        yield chart("Cosine between objectives (below 0: they disagree)", series, angles)


def before_and_after(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was measured before and after."""
    before, after = summary.get("before", {}), summary.get("after", {})
    for name in after:
        if before.get(name) is not None and after[name] is not None:
            yield name, f"{before[name]:.4g} before, {after[name]:.4g} after"


def costs(folder: Path) -> list[tuple[str, str]]:
    """Return what the run took."""
    summary = stored(folder / "summary.json")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found = [
        (name, f"{summary[name]:.4g}")
        for name in ("steps", "images_per_s", "unreadable")
        if name in summary
    ]
    return [*found, ("disk", f"{size / 2**20:.0f} MiB")]


def provenance(folder: Path, part: Path) -> Iterator[tuple[str, str]]:
    """Yield what the run was made with, and digests of what it leaves."""
    for name, value in stored(part / ENVIRONMENT).items():
        several = isinstance(value, Mapping)
        yield name, ", ".join(f"{k}: {v}" for k, v in value.items()) if several else str(value)
    for path in [folder / RECIPE, *sorted((folder / "weights").glob("*.safetensors"))]:
        yield f"sha256 of {path.name}", digest(path)


def keys(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key path of a table and its value."""
    for path, value in toml.leaves(table):
        yield ".".join(path), json.dumps(value, ensure_ascii=False)


def stored(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is none.

    Raises:
        RunFolderError: It is damaged.
    """
    return parsed(path.read_bytes(), str(path)) if path.is_file() else {}
