"""Data that do not divide, other numbers of processes on resume, and folders that move."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from crew import crew, ended, wait_for
from kit import kit
from parts import outcome, small_run, small_settings, small_trio

from dira_core.api import pretrain, run
from dira_core.data.dataset import Crops
from dira_core.data.loader import Loader
from dira_core.errors import DataError, RecipeError, RunFolderError
from dira_core.layering import Layer
from dira_core.lines import read_lines
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.testing import TinySource
from dira_core.trainer import Trainer

pytestmark = pytest.mark.faults

BATCH = 2


@pytest.fixture(scope="module")
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def loaders(n: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Return what each of several processes reads in an epoch: its batches of indices."""
    settings, found = small_settings(train={"batch_size": BATCH}), []
    monkeypatch.setattr("dira_core.data.loader.world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr("dira_core.data.loader.rank", lambda rank=rank: rank)
        loader = Loader(TinySource(n), settings, 1)
        batches = [crops.index.tolist() for crops in loader.batches(0)]
        assert len(batches) == loader.batches_per_epoch
        found.append(batches)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_images_gives_every_process_as_many_steps_and_no_image_twice(
    monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    for n in range(1, 41):
        if n < BATCH * ranks:
            with pytest.raises(DataError, match=f"a step needs {BATCH * ranks} images, the source"):
                loaders(n, ranks, monkeypatch)
            continue
        found = loaders(n, ranks, monkeypatch)
        assert {len(batches) for batches in found} == {n // (BATCH * ranks)}
        everything = list(itertools.chain(*itertools.chain(*found)))
        assert len(everything) == len(set(everything)) > n - BATCH * ranks


@pytest.mark.parametrize(
    ("n", "ranks", "codes"), [(7, 3, [0] * 3), (5, 3, [3] * 3), (4, 2, [0] * 2)]
)
def test_processes_with_uneven_data_end_together(
    tmp_path: Path, n: int, ranks: int, codes: list[int]
) -> None:
    settings = small_settings(train={"batch_size": BATCH, "epochs": 2})

    def work(rank: int) -> None:
        pretrain(small_trio(), TinySource(n), settings, tmp_path / "run")

    left = ended(tmp_path / "crew", work, processes=ranks)
    assert [each.code for each in left] == codes
    if any(codes):
        assert all("a step needs 6 images, the source has 5" in each.said for each in left)


def test_a_batch_of_one_image_is_refused_where_a_batch_norm_needs_more(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch norm .* at least 2 images"):
        small_run(tmp_path / "run", train={"batch_size": 1})


def spied(recipe: Recipe, folder: Path, notes: Path, stop_at: int, resume: bool) -> None:
    """Run, note which images each step of this process trains on, and stop by SIGTERM."""
    rank, step = torch.distributed.get_rank(), Trainer.train_step

    def noted(self: Trainer, pieces: Sequence[Crops]) -> dict[str, float]:
        images = [int(i) for piece in pieces for i in piece.index]
        (notes / f"{self.step}-{rank}.json").write_text(json.dumps(images))
        if self.step + 1 == stop_at:
            os.kill(os.getpid(), 15)
        return step(self, pieces)

    Trainer.train_step = noted  # type: ignore[method-assign] # in a forked process
    run(recipe, folder, resume=resume)


def images_of(notes: Path) -> list[set[int]]:
    """Return the images of every step, over all processes."""
    steps: dict[int, list[int]] = {}
    for path in notes.iterdir():
        steps.setdefault(int(path.stem.split("-")[0]), []).extend(json.loads(path.read_text()))
    assert all(max(Counter(images).values()) == 1 for images in steps.values())
    return [set(steps[step]) for step in sorted(steps)]


@pytest.mark.usefixtures("_kit")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_then_one_then_three_processes_see_the_same_images_in_the_same_steps(
    tmp_path: Path, strategy: str
) -> None:
    values = {
        "data": {"name": "small-set", "n": 30},
        "backbone": "small-net",
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "views": {"size": 16},
        "train": {
            "epochs": 2,
            "batch_size": 3,
            "processes": 2,
            "precision": "fp32",
            "sync_norm": True,
            "strategy": strategy,
        },
        "log": {"every": 1, "probe": False},
    }
    recipe, folder = resolve([Layer("test", values)]).recipe, tmp_path / "run"
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    plain.mkdir()
    mixed.mkdir()
    ended(tmp_path / "crew", lambda rank: spied(recipe, tmp_path / "whole", plain, 0, False))
    for number, (ranks, stop_at) in enumerate([(2, 3), (1, 6), (3, 0)]):
        left = ended(
            tmp_path / f"crew{number}",
            lambda rank, stop_at=stop_at, again=number > 0: spied(
                recipe, folder, mixed, stop_at, again
            ),
            processes=ranks,
        )
        assert [each.code for each in left] == [0] * ranks, left
    assert images_of(mixed) == images_of(plain)
    assert len(images_of(mixed)) == 10
    first, second = (
        [line["losses/res"] for line in read_lines(place / "metrics.jsonl")]
        for place in (tmp_path / "whole", folder)
    )
    assert first[:3] == second[:3]
    assert second == pytest.approx(first, rel=1e-4)


def test_a_second_pair_of_processes_in_a_folder_is_refused_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with crew(tmp_path / "a", lambda rank: small_run(folder, train={"epochs": 200})) as owners:
        wait_for(folder / "metrics.jsonl")
        left = ended(tmp_path / "b", lambda rank: small_run(folder, resume=True))
        assert owners.alive()
    for each in left:
        assert each.code == RunFolderError.exit_code
        assert "is in use by pid" in each.said


def test_a_moved_folder_is_resumed_to_the_same_bits(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "other place" / "moved"
    with crew(tmp_path / "a", lambda rank: small_run(folder), processes=1) as alone:
        wait_for(folder / "checkpoints/step-00000004")
        alone.kill(0)
        alone.left()
    elsewhere.parent.mkdir()
    shutil.move(folder, elsewhere)
    small_run(elsewhere, resume=True)
    assert outcome(elsewhere) == whole
    assert not folder.exists()


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = (1e9 - 3600 * n for n in itertools.count())
    monkeypatch.setattr(time, "time", lambda: next(back))
    small_run(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole
