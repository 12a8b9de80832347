from __future__ import annotations

import json
from pathlib import Path

import pytest

from dira_core.errors import RunFolderError
from dira_core.layering import gather
from dira_core.recipe import to_toml
from dira_core.report.run import run_page
from dira_core.resolving import resolve
from dira_core.revival import parts_of


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """Return a run of two stages, the second of which is under way."""
    recipe = to_toml(resolve(gather(preset="released", data="phantom")).recipe)
    for stage in ("dir", "dira"):
        part = tmp_path / "stages" / stage
        part.mkdir(parents=True)
        (part / "recipe.toml").write_text(recipe)
        lines = [
            {"step": step, "losses/dis": 1 / step, "gradients/cos_dis_res": None} for step in (1, 2)
        ]
        lines.append({"step": 2, "alarm": "collapse", "since": len(stage)})
        (part / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "recipe.toml").write_text(recipe)
    return tmp_path


def test_curves_and_alarms_of_every_stage_are_on_the_page(staged: Path) -> None:
    page = run_page(staged)
    titles = [section.title for section in page.sections]
    assert [title for title in titles if title.endswith("Losses")] == [
        "Stage dir: Losses",
        "Stage dira: Losses",
    ]
    assert [alarm.split(":")[0] for alarm in page.alarms] == [
        "collapse since step 3",
        "collapse since step 4",
    ]
    assert "try a smaller learning rate" in page.alarms[0]
    assert [part.name for part in parts_of(staged)] == ["dir", "dira"]


def test_pictures_that_cannot_be_made_are_left_out_with_the_reason(staged: Path) -> None:
    [pictures] = [section for section in run_page(staged).sections if section.title == "Pictures"]
    assert pictures.note.startswith("Left out: no checkpoint in ")
    assert not pictures.pictures


@pytest.mark.parametrize("name", ["status.json", "summary.json", "environment.json"])
@pytest.mark.parametrize("damage", ["", "[]"])
def test_a_damaged_record_of_a_run_is_named(staged: Path, name: str, damage: str) -> None:
    place = parts_of(staged)[-1] if name == "environment.json" else staged
    (place / name).write_text(damage)
    with pytest.raises(RunFolderError, match=f"{place / name} is damaged, it is no JSON.*remove"):
        run_page(staged)
