from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dira_core.study.formats import html, latex, markdown
from dira_core.study.jobs import Cell, Job
from dira_core.study.plan import Arm, Study
from dira_core.study.results import collect, comparisons, csv_text, entries, with_all_seeds
from dira_core.study.statistics import t_test
from dira_core.study.tables import Table, Text, all_tables, ranked
from dira_core.study.writing import write_results

AUC = {"random": 0.60, "di": 0.70, "dir": 0.71, "dira": 0.80}
PLAN = Study.model_validate(
    {
        "arms": [*AUC],
        "recipes": {"moco": {}},
        "targets": {"chest": {"target": "csv", "fractions": [0.1, 1.0]}},
    }
)


def finished(study: Path, arm: Arm, fraction: float, seed: int) -> Job:
    """Leave what a transfer of an arm leaves: its AUC above, and a hundredth more by seed."""
    recipe = "" if arm == "random" else "moco"
    job = Job(
        f"transfer/{arm}-{fraction}-{seed}",
        {"kind": "transfer"},
        None,
        Cell(recipe, arm, "chest", "fine-tune", fraction, seed),
    )
    auc = AUC[arm] + 0.01 * seed
    scores = {"auc": {"mean": auc, "by_class": {"=cmd|sick": auc}, "left_out": []}}
    folder = job.folder(study)
    (folder / "transfer").mkdir(parents=True)
    result = {"scores": {"fine-tune": scores}, "pretraining": {"images": 0}, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    rng = np.random.default_rng(seed)
    with (folder / "transfer/predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "label =cmd|sick", "score =cmd|sick"])
        for i in range(40):
            score = rng.normal(i % 2 * 3 * (AUC[arm] - 0.5))
            writer.writerow([f"{i}.png", i // 2, i % 2, f"{score:.4f}"])
    return job


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [
        finished(tmp_path, arm, fraction, seed)  # type: ignore[arg-type]
        for fraction in (0.1, 1.0)
        for arm in AUC
        for seed in PLAN.seeds
    ]


def shown(jobs: list[Job], study: Path) -> dict[str, Table]:
    found = entries(PLAN, with_all_seeds(jobs, collect(jobs, study)))
    return {
        table.title.split()[1].strip(":"): table
        for table in all_tables(PLAN, found, comparisons(found))
    }


def test_tables_have_the_papers_rows_with_mean_deviation_and_difference(
    jobs: list[Job], tmp_path: Path
) -> None:
    tables = shown(jobs, tmp_path)
    assert [*tables] == ["1", "2", "3", "4", "5", "6"]
    assert [c.text for c in tables["1"].rows[1]] == ["DiRA moco", *["81.00 (↑ 10.00)"] * 2]
    assert [c.text for c in tables["2"].rows[0]] == ["Random", *["61.00 ± 1.00"] * 2]
    assert [c.text for c in tables["2"].rows[1]] == ["DiRA moco", *["81.00 ± 1.00 ↑"] * 2]
    row = [c.text for c in tables["3"].rows[0]]
    assert row == ["chest 0.1", "61.00 ± 1.00", "72.00 ± 1.00", "81.00 ± 1.00 (↑ 9.00)"]
    ablation = [[c.text for c in row] for row in tables["4"].rows]
    assert ablation[0] == ["moco", "✓", "✗", "✗", *["71.00 ± 1.00"] * 2]
    assert ablation[1] == ["moco", "✓", "✓", "✗", *["72.00 ± 1.00 ="] * 2]
    assert ablation[2] == ["moco", "✓", "✓", "✓", *["81.00 ± 1.00 ↑"] * 2]
    assert [c.best for c in tables["4"].rows[2]][-2:] == [True, True]
    assert [c.second for c in tables["4"].rows[1]][-2:] == [True, True]


def test_a_comparison_rests_on_seeds_patients_and_all_others(
    jobs: list[Job], tmp_path: Path
) -> None:
    found = comparisons(entries(PLAN, collect(jobs, tmp_path)))
    assert len(found) == 2 * 6
    one = next(c for c in found if (c.arm, c.against, c.fraction) == ("dira", "random", 1.0))
    p = t_test([80, 81, 82], [60, 61, 62])
    assert one.difference == pytest.approx(20)
    assert one.p == pytest.approx(p)
    assert one.p_holm is not None
    assert one.p_holm >= 8 * (p or 0)
    assert one.interval is not None
    assert one.interval[0] > 0


def test_draws_scatter_around_the_score_of_the_predictions(jobs: list[Job], tmp_path: Path) -> None:
    found = entries(PLAN, collect(jobs, tmp_path))
    entry = next(e for e in found["chest", "fine-tune", 1.0] if e.arm == "dir")
    areas = []
    for seed in PLAN.seeds:
        with (tmp_path / f"jobs/transfer/dir-1.0-{seed}/transfer/predictions.csv").open() as file:
            table = [*csv.DictReader(file)]
        columns = (
            [float(row[name]) for row in table] for name in ("label =cmd|sick", "score =cmd|sick")
        )
        areas.append(100 * roc_auc_score(*columns))
    assert np.mean(entry.draws) == pytest.approx(np.mean(areas), abs=0.5)


def test_weights_without_all_seeds_are_in_no_table(jobs: list[Job], tmp_path: Path) -> None:
    (jobs[-1].folder(tmp_path) / "result.json").unlink()
    tables = shown(jobs, tmp_path)
    assert tables["4"].rows[2][-1].text == "-"
    assert tables["4"].rows[2][-2].text == "81.00 ± 1.00 ↑"


def test_results_are_written_in_every_format_and_say_what_is_missing(
    jobs: list[Job], tmp_path: Path
) -> None:
    (jobs[-1].folder(tmp_path) / "result.json").unlink()
    lines = write_results(PLAN, jobs, tmp_path)
    assert "23 of 24 jobs are done" in lines[-1]
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["entries"][0]["percent"] == pytest.approx([60, 61, 62])
    for name in ("tables.md", "tables.tex", "tables.html"):
        assert "81.00" in (tmp_path / name).read_text()
    lines_of = [*csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))]
    assert {row["score"] for row in lines_of} == {"auc", "auc =cmd|sick"}
    assert len(lines_of) == 2 * 23
    assert csv_text([]) == "\n"


HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "</td></table><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "a|b",
    r"\input{/etc/passwd}",
    "100 % & $x_1^2$ #~",
    "{{ 7 * 7 }}",
    "new\nline",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_gets_out_of_its_cell(name: str) -> None:
    table = Table(name, [name, "x"], [[Text(name), Text("1")]], name)
    page = html([table])
    assert page.count("<script") == page.count("<img") == page.count('onload="') == 0
    assert page.count("<td>") == 2
    written = markdown([table])
    assert "<" not in written.replace("\\<", "")
    assert "](" not in written.replace("\\](", "")
    body = [line for line in written.splitlines() if line.startswith("| ")]
    assert [line.replace("\\|", "").count("|") for line in body] == [3, 3, 3]
    text = latex([table])
    assert "\\input" not in text
    assert not re.search(r"(?<!\\)[#%_^~]", text.replace(r"L\_", ""))


def test_the_best_and_the_second_best_of_a_column_are_marked() -> None:
    found: Any = ranked([[Text("a", v)] for v in (1.0, 3.0, 2.0, None, 3.0)])
    assert [row[0].best for row in found] == [False, True, False, False, True]
    assert [row[0].second for row in found] == [False, False, True, False, False]
