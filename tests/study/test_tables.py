from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dira_core.errors import RunFolderError
from dira_core.study.estimate import Estimate
from dira_core.study.formats import html, latex, markdown
from dira_core.study.jobs import Cell, Job
from dira_core.study.plan import Arm, Study
from dira_core.study.predictions import Predictions
from dira_core.study.results import (
    collect,
    comparisons,
    csv_text,
    entries,
    with_all_seeds,
)
from dira_core.study.statistics import t_test
from dira_core.study.tables import Table, Text, all_tables, ranked
from dira_core.study.writing import write_results
from dira_core.targets import Labels
from dira_core.transfer import scoring

AUC = {"random": 0.60, "di": 0.70, "dir": 0.71, "dira": 0.80}
PLAN = Study.model_validate(
    {
        "arms": [*AUC],
        "recipes": {"moco": {}},
        "targets": {"chest": {"target": "csv", "fractions": [0.1, 1.0]}},
    }
)


UNSEEN = {"images": 0, "patients": None, "untrained": False}


def finished(
    study: Path, arm: Arm, fraction: float, seed: int, seen: Mapping[str, Any] = UNSEEN
) -> Job:
    """Leave what a transfer of an arm leaves: its AUC above, and a hundredth more by seed."""
    recipe = "" if arm == "random" else "moco"
    job = Job(
        f"transfer/{arm}-{fraction}-{seed}",
        {"kind": "transfer"},
        None,
        Cell(recipe, arm, "chest", "fine-tune", fraction, seed),
    )
    auc = AUC[arm] + 0.01 * seed
    by_class = {"=cmd|sick": auc}
    scores = {"auc": {"mean": auc, "by_class": by_class, "left_out": []}, "scored": [*by_class]}
    folder = job.folder(study)
    (folder / "transfer").mkdir(parents=True)
    result = {"scores": {"fine-tune": scores}, "pretraining": seen, "seconds": 1.0}
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


def test_the_order_in_which_a_study_names_its_arms_changes_nothing() -> None:
    backwards = Study.model_validate({**PLAN.model_dump(), "arms": [*AUC][::-1]})
    assert backwards == PLAN


def test_what_pretraining_saw_of_the_test_images_is_said_below_the_tables(tmp_path: Path) -> None:
    knows: list[Mapping[str, Any]] = [
        {"images": 3, "patients": 0, "untrained": False},
        {"images": 0, "patients": 25, "untrained": False},
        {"images": None, "patients": None, "untrained": False},
        {"images": None, "patients": None, "untrained": True},
    ]
    arms: list[Arm] = ["di", "dir", "dira", "random"]
    jobs = [finished(tmp_path, arm, 1.0, 0, seen) for arm, seen in zip(arms, knows, strict=True)]
    text = "\n".join(write_results(PLAN, jobs, tmp_path))
    assert (
        "WARNING: pretraining saw up to 3 of the test images, and patients of the same id as those "
        "of up to 25 test images. Of 1 transfers it is not known whether pretraining saw some."
    ) in text
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["seen_in_pretraining"] == {"images": 3, "patients": 25, "unknown": 1}


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


@pytest.mark.parametrize("damage", [None, "", "x,y\n1,2\n", "image,patient\na.png,p\n"])
def test_predictions_that_are_gone_or_damaged_are_named(
    jobs: list[Job], tmp_path: Path, damage: str | None
) -> None:
    folder = jobs[-1].folder(tmp_path)
    path = folder / "transfer/predictions.csv"
    path.unlink() if damage is None else path.write_text(damage)
    message = f"{path} is missing or damaged: remove it and {folder / 'result.json'}, and start"
    with pytest.raises(RunFolderError, match=re.escape(message)):
        write_results(PLAN, jobs, tmp_path)


CLASSES = ["sick", "no\u00a0finding", "=hard\nto see", "one side"]


def measured(study: Path, arm: Arm, scored: list[str] | None) -> Job:
    """Leave what a transfer leaves of a task whose classes differ in how well they are told."""
    job = finished(study, arm, 1.0, 0)
    rng = np.random.default_rng(len(arm))
    truth = np.stack([np.arange(60) // 3 % 2] * 4, 1).astype(float)
    truth[:, 3] = 0
    predicted = rng.normal(truth * [1, 0.5, 6, 0]).astype(np.float32).round(3)
    truth[::7, 0] = np.nan
    patients = [f"p{i // 2}" for i in range(60)]
    source: Any = SimpleNamespace(name=lambda index: f"{index}.png")
    target = Labels(source, CLASSES, None, patients, truth, exclusive=False, scored=scored)
    table = scoring.score_labels(target, np.arange(60), predicted)
    folder = job.folder(study)
    (folder / "transfer/predictions.csv").write_text(scoring.csv_text(table))
    result = json.loads((folder / "result.json").read_text())
    result["scores"] = {"fine-tune": table.scores}
    (folder / "result.json").write_text(json.dumps(result))
    return job


@pytest.mark.parametrize("scored", [None, ["sick", "no\u00a0finding", "one side"]])
def test_intervals_are_of_the_classes_whose_mean_is_the_score(
    scored: list[str] | None, tmp_path: Path
) -> None:
    jobs = [measured(tmp_path, arm, scored) for arm in ("random", "di")]
    for outcome in collect(jobs, tmp_path):
        table = Predictions(outcome.predictions)
        once = np.ones((1, len(table.images)))
        again = table.weighted("auc", outcome.scored, once)
        assert again == pytest.approx([outcome.scores["auc"]])
    write_results(PLAN, jobs, tmp_path)
    for entry in json.loads((tmp_path / "results.json").read_text())["entries"]:
        low, high = entry["interval"]
        assert low < entry["mean"] < high
        assert abs((low + high) / 2 - entry["mean"]) < 2


def test_weights_whose_score_is_not_defined_are_named_with_the_reason(
    jobs: list[Job], tmp_path: Path
) -> None:
    for job in jobs:
        assert job.cell is not None
        if job.cell.arm == "dira" and job.cell.fraction == 1:
            path = job.folder(tmp_path) / "result.json"
            path.write_text(re.sub(r'("mean"|"=cmd.sick"): [0-9.]+', r"\1: null", path.read_text()))
    [*_, done, last] = write_results(PLAN, jobs, tmp_path)
    assert "24 of 24 jobs are done" in done
    assert last.startswith("left out: moco dira of chest fine-tune 1 (auc is not defined")
    assert last.count("moco dira") == 1
    dice = {"chest": {**PLAN.targets["chest"].model_dump(), "metric": "dice_per_image"}}
    other = Study.model_validate({**PLAN.model_dump(), "targets": dice})
    last = write_results(other, jobs, tmp_path)[-1]
    assert " and 3 more (there is no dice_per_image of this task, change targets.chest" in last


def test_a_study_of_one_arm_says_that_nothing_is_compared(jobs: list[Job], tmp_path: Path) -> None:
    of = [job for job in jobs if job.cell is not None and job.cell.arm == "dira"]
    [*_, last] = write_results(PLAN, of, tmp_path)
    assert "nothing is compared: a comparison needs two arms of one task" in last
    assert "only moco dira has values" in last
    assert "nothing is compared" not in write_results(PLAN, jobs, tmp_path)[-1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seconds": 1', "\udcff"])
def test_a_damaged_result_is_named_with_the_way_out(
    text: str, jobs: list[Job], tmp_path: Path
) -> None:
    path = jobs[3].folder(tmp_path) / "result.json"
    path.write_text(text, errors="surrogateescape")
    for read in (lambda: collect(jobs, tmp_path), lambda: Estimate(jobs, tmp_path)):
        with pytest.raises(RunFolderError) as found:
            read()
        assert str(found.value) == f"{path} is damaged: remove it, and start the study again"


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
