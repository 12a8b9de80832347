from __future__ import annotations

import re
from pathlib import Path

import pytest
from kit import Dira

from dira_core.errors import RecipeError
from dira_core.plugins import installed
from dira_core.transfer.plan import Plan, Training, transfer_plan


@pytest.mark.parametrize(
    ("target", "lr", "schedule", "epochs", "patience", "plateau"),
    [("csv", 2e-4, "constant", 1000, 10, 5), ("masks", 1e-3, "epoch-cosine", 200, 20, None)],
)
def test_targets_bring_along_what_was_published(
    target: str, lr: float, schedule: str, epochs: int, patience: int, plateau: int | None
) -> None:
    training = transfer_plan(target, "x.csv").training
    assert training.optimizer.name == "adam"
    assert (training.optimizer.lr, training.optimizer.schedule) == (lr, schedule)
    assert training.optimizer.weight_decay == 0
    assert training.optimizer.lr_batch is None
    assert (training.epochs, training.patience, training.plateau) == (epochs, patience, plateau)
    assert training.batch_size == 32


def test_assignments_go_over_what_the_target_brings_along() -> None:
    plan = transfer_plan("masks", "x.csv", ["training.optimizer.lr=0.5", "training.plateau=3"])
    assert plan.training.optimizer.lr == 0.5
    assert plan.training.optimizer.name == "adam"
    assert plan.training.plateau == 3


@pytest.mark.parametrize(
    ("target", "data", "given", "message"),
    [
        ("cvs", "x.csv", (), "no target is called 'cvs'"),
        ("csv", None, (), "target 'csv' needs --data (FILE.csv: image, label"),
        ("csv", "x.csv", ("target.lable=a",), "target.lable: no such key"),
        ("csv", "x.csv", ("fraction=0",), "fraction: input should be greater than 0"),
        ("csv", "x.csv", ("way=probe",), "way: input should be 'fine-tune', 'linear' or 'knn'"),
    ],
)
def test_what_cannot_be_planned_says_which_key(
    target: str, data: str | None, given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        transfer_plan(target, data, given)


def test_the_command_lists_every_target_with_its_options(dira: Dira) -> None:
    code, out, _ = dira("targets")
    assert code == 0
    for component in installed().components("target"):
        assert component.summary in out
        for key in component.options.model_fields:
            assert f"target.{key}: " in out


def test_an_error_of_the_command_is_one_line(dira: Dira) -> None:
    given = ["--target", "csv", "--data", "gone.csv", "--backbone", "resnet18"]
    code, out, err = dira("transfer", "random", *given)
    assert code == 3
    assert out == ""
    assert err == "error: manifest 'gone.csv': no such file or directory\n"


def test_every_key_of_a_plan_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs/transfer.md").read_text()
    keys = {*Plan.model_fields} - {"target", "training"}
    keys |= {f"training.{key}" for key in Training.model_fields}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_few_images_are_passed_over_until_an_epoch_is_long_enough() -> None:
    training = Training(batch_size=32, least_steps=20)
    assert [training.steps(n) for n in (1, 32, 33, 640, 641)] == [20, 20, 20, 20, 21]
    assert [training.passes(n) for n in (1, 33, 400, 640, 641)] == [20, 10, 2, 1, 1]


def test_what_no_image_stops_ends_after_its_passes_at_a_rate_that_falls() -> None:
    training = Training(batch_size=32, least_steps=20, few_passes=50, epochs=1000, plateau=5)
    alone = training.unwatched(19)
    assert (alone.epochs, alone.passes(19), alone.steps(19)) == (3, 20, 20)
    assert [training.unwatched(n).epochs for n in (158, 640)] == [13, 50]
    assert (alone.plateau, alone.optimizer.schedule) == (None, "cosine")
    assert alone.optimizer.lr == training.optimizer.lr
    assert training.model_copy(update={"epochs": 4}).unwatched(640).epochs == 4


@pytest.mark.parametrize(
    ("target", "images", "held_back"),
    [
        *[("chestxray14", 78_484, 8_040), ("chexpert", 200_000, 22_000), ("siim-acr", 8_000, 900)],
        *[("montgomery", 99, 11), ("luna16", 300_000, 60_000), ("lidc-idri", 4_082, 700)],
        *[("lits", 100, 15), ("brats", 166, 24)],
    ],
)
def test_published_trainings_see_each_image_once_an_epoch_and_stop_early(
    target: str, images: int, held_back: int
) -> None:
    training = transfer_plan(target, "x").training
    assert training.passes(images) == 1
    assert training.least_validation <= held_back
