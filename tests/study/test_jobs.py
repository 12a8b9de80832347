from __future__ import annotations

import json
from pathlib import Path

import pytest

from dira_core.errors import RecipeError, RunFolderError
from dira_core.study.jobs import Job, jobs_of, lay_out
from dira_core.study.plan import Study, read_study


def changed(plan: Study, **values: object) -> Study:
    return Study.model_validate({**plan.model_dump(), **values})


def test_all_arms_meet_the_same_plans_and_every_transfer_follows_its_pretraining(
    plan: Study,
) -> None:
    jobs = jobs_of(plan)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) == 6
    by_arm: dict[str, list[str]] = {"random": [], "di": []}
    for job in jobs:
        if job.cell is not None:
            by_arm[job.cell.arm].append(json.dumps(job.asked["plan"], sort_keys=True))
            assert job.after is None or names.index(job.after) < names.index(job.name)
            assert job.asked["plan"]["split_seed"] == 0
    assert sorted(by_arm["random"]) == sorted(by_arm["di"])


def test_a_pretraining_is_the_recipe_in_its_mode_and_seed(plan: Study) -> None:
    recipes = {j.name: j.asked["recipe"] for j in jobs_of(plan) if j.cell is None}
    assert [*recipes] == ["pretrain/small-di-seed0", "pretrain/small-di-seed1"]
    assert [recipe["seed"] for recipe in recipes.values()] == [0, 1]
    assert all(recipe["restorer"] is None for recipe in recipes.values())


def test_weights_that_seeds_share_are_pretrained_once_and_frozen_once(plan: Study) -> None:
    discs = plan.targets["discs"].model_copy(update={"ways": ["knn", "fine-tune"]})
    arms = ["random", "imagenet", "di"]
    once = {"pretrain_seeds": "first", "label_seeds": "first"}
    jobs = jobs_of(changed(plan, **once, arms=arms, targets={"discs": discs}))
    assert [job.name for job in jobs if job.cell is None] == ["pretrain/small-di-seed0"]
    seeds = {(way, arm): 0 for way in ("knn", "fine-tune") for arm in arms}
    for job in jobs:
        if job.cell is not None:
            seeds[job.cell.way, job.cell.arm] += 1
    assert [*seeds.values()] == [2, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("draws", "drawn"), [("each", [3, 5]), ("first", [3, 3])])
def test_seeds_draw_labels_of_their_own_the_same_for_all_arms(
    plan: Study, draws: str, drawn: list[int]
) -> None:
    discs = plan.targets["discs"].model_copy(
        update={"ways": ["linear", "fine-tune"], "fractions": [0.5, 1.0]}
    )
    several = {"seeds": [3, 5], "pretrain_seeds": "first", "label_seeds": draws}
    of = changed(plan, **several, targets={"discs": discs})
    found: dict[tuple[str, str, float], list[int]] = {}
    for job in jobs_of(of):
        if job.cell is not None:
            key = job.cell.way, job.cell.arm, job.cell.fraction
            found.setdefault(key, []).append(job.asked["plan"]["label_seed"])
    assert found["linear", "di", 1.0] == [3]  # the same weights and labels for all seeds
    assert found["linear", "di", 0.5] == (drawn if draws == "each" else [3])
    for way, arm in [("linear", "random"), ("fine-tune", "random"), ("fine-tune", "di")]:
        assert found[way, arm, 1.0] == [3, 3]
        assert found[way, arm, 0.5] == drawn


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipes": {}}, "add a table"),
        ({"seeds": [1, 1]}, "seeds names something twice"),
        ({"targets": {}}, "targets"),
        ({"recipes": {"../up": {}}}, "recipes"),
        ({"arms": ["dirac"]}, "arms"),
    ],
)
def test_a_study_that_cannot_be_is_refused(
    file: Path, values: dict[str, object], said: str
) -> None:
    plan = read_study(file).model_dump(mode="json")
    path = file.with_suffix(".json")
    path.write_text(json.dumps({**plan, **values}))
    with pytest.raises(RecipeError, match=said):
        read_study(path)


def test_recipes_of_other_networks_are_no_one_study(plan: Study) -> None:
    recipes = {"small": {}, "large": {"set": ["views.size=32"]}}
    with pytest.raises(RecipeError, match="recipes.large has another size"):
        jobs_of(changed(plan, recipes=recipes))


def test_a_wrong_key_is_told_with_the_name_of_its_table(plan: Study) -> None:
    with pytest.raises(RecipeError, match="recipes.small: "):
        jobs_of(changed(plan, recipes={"small": {"set": ["views.sice=32"]}}))
    targets = {"discs": {"target": "csv", "data": "labels.csv", "set": ["epoch=3"]}}
    with pytest.raises(RecipeError, match="targets.discs: "):
        jobs_of(changed(plan, targets=targets))


def test_a_misspelt_key_of_a_named_table_is_told_with_the_right_one(file: Path) -> None:
    file.write_text(file.read_text().replace("fractions = ", "fraction = "))
    with pytest.raises(RecipeError, match="targets.discs.fraction: no such key .*'fractions'"):
        read_study(file)


def test_a_task_may_see_images_of_another_size_and_decides_nothing_else(plan: Study) -> None:
    def of(*asked: str) -> Study:
        task = {"target": "csv", "data": "labels.csv", "set": ["target.label=finding", *asked]}
        return changed(plan, targets={"discs": task})

    jobs = [job for job in jobs_of(of("size=24")) if job.cell is not None]
    assert {job.asked["plan"]["size"] for job in jobs} == {24}
    for key in ("seed", "label_seed", "fraction", "way", "backbone", "decoder.widths"):
        name = key.partition(".")[0]
        with pytest.raises(RecipeError, match=f"targets.discs: set: {name} is decided by"):
            jobs_of(of(f"{key}=1"))


def test_a_changed_study_adds_jobs_but_changes_none(plan: Study, tmp_path: Path) -> None:
    study = tmp_path / "study"
    lay_out(jobs_of(plan), study)
    lay_out(jobs_of(changed(plan, seeds=[0, 1, 2])), study)
    assert len([*study.rglob("asked.json")]) == 9
    other = [Job(job.name, {**job.asked, "weights": "random:7"}) for job in jobs_of(plan)]
    lay_out(other, study)  # none of them began
    assert json.loads((other[-1].folder(study) / "asked.json").read_text()) == other[-1].asked
    (other[-1].folder(study) / "log.txt").touch()
    lay_out(other, study)
    with pytest.raises(RunFolderError, match=r"asked for something else \(weights"):
        lay_out(jobs_of(plan), study)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_job_that_is_damaged_is_named_before_others_are_done(
    plan: Study, tmp_path: Path, text: str
) -> None:
    jobs = jobs_of(plan)
    lay_out(jobs, tmp_path)
    folder = jobs[0].folder(tmp_path)
    (folder / "result.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"result.json is damaged: remove it, and start"):
        lay_out(jobs, tmp_path)
    (folder / "asked.json").write_text(text)
    with pytest.raises(RunFolderError) as found:
        lay_out(jobs, tmp_path)
    assert str(found.value).endswith(
        f"asked.json is damaged: remove {folder}, and start the study again"
    )
