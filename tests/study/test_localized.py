from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dira_core.report.study import heat_maps
from dira_core.study.jobs import Cell, Job
from dira_core.study.localized import placed
from dira_core.study.places import localization_tables
from dira_core.study.plan import Arm
from dira_core.study.results import Outcome, with_all_seeds


def finding(pointing: float) -> dict[str, object]:
    return {
        "pointing": pointing,
        "pointing_by_chance": 0.1,
        "iobb": {"thresholds": [0.1, 0.25], "acc": [0.5, 0.25], "afp": [1, 2]},
        "iou": {"thresholds": [0.1], "acc": [0.4], "afp": [1]},
    }


def cell(arm: Arm, seed: int = 0) -> Cell:
    return Cell("" if arm == "random" else "moco", arm, "chest", "fine-tune", 1.0, seed)


def outcome(arm: Arm, seed: int, pointing: float) -> Outcome:
    scores = placed({"mass": finding(0.9), "all": finding(pointing)})
    return Outcome(cell(arm, seed), "fine-tune", scores, [], Path(), 0, 1.0)


def test_the_table_has_a_row_an_arm_over_all_findings_and_seeds() -> None:
    outcomes = [
        outcome(arm, seed, 0.2 + 0.2 * seed) for arm in ("random", "dira") for seed in (0, 1)
    ]
    [table] = localization_tables(outcomes)
    assert list(table.header)[2:] == [
        "pointing",
        "by chance",
        "iobb > 0.1",
        "iobb > 0.25",
        "iou > 0.1",
    ]
    assert [[c.text for c in row][:4] for row in table.rows] == [
        ["chest 1", "random", "30.0 ± 14.1", "10.0 ± 0.0"],
        ["chest 1", "moco dira", "30.0 ± 14.1", "10.0 ± 0.0"],
    ]


def test_an_arm_without_all_seeds_is_not_in_the_table() -> None:
    outcomes = [outcome("random", 0, 0.2), outcome("random", 1, 0.4), outcome("dira", 0, 0.4)]
    jobs = [Job("", {}, None, cell(arm, seed)) for arm in ("random", "dira") for seed in (0, 1)]
    [table] = localization_tables(with_all_seeds(jobs, outcomes))
    assert [row[1].text for row in table.rows] == ["random"]


def test_without_boxes_of_experts_there_is_no_table() -> None:
    assert placed({}) == {}
    assert (
        localization_tables([Outcome(cell("di"), "fine-tune", {"auc": 1.0}, [], Path(), 0, 1.0)])
        == []
    )


def test_one_finding_alone_is_all_there_is() -> None:
    assert placed({"mass": finding(0.75)})["localization"] == 0.75


def test_heat_maps_of_the_first_seed_stand_beside_each_other(tmp_path: Path) -> None:
    jobs = []
    for arm in ("random", "dira"):
        for seed in (0, 1):
            jobs.append(Job(f"transfer/{arm}{seed}", {}, None, cell(arm, seed)))
            overlays = jobs[-1].folder(tmp_path) / "localize/overlays"
            overlays.mkdir(parents=True)
            for number in range(2 + seed):
                Image.fromarray(np.zeros((4, 8), np.uint8)).save(overlays / f"{number}.png")
    [section] = heat_maps(jobs, tmp_path)
    [pictures] = section.pictures
    assert list(pictures.columns) == ["random", "moco dira"]
    assert [len(row) for row in pictures.rows] == [2, 2]
    assert [*heat_maps([], tmp_path)] == []
