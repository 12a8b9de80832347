"""A rehearsal takes two steps, predicts from the second, and stumbles where the run would."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kit import kit
from PIL import Image as PillowImage

from dira_core import rehearsal
from dira_core.errors import DataError, DivergedError
from dira_core.rehearsal import rehearse
from dira_core.resume import capture
from dira_core.testing import TinySource
from dira_core.types import Image


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def recipe(**changes: Any) -> Any:
    from dira_core.recipe import Recipe

    values: dict[str, Any] = {
        "data": {"name": "small-set", "n": 24},
        "backbone": "small-net",
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "views": {"size": 16},
        "train": {"batch_size": 4, "precision": "fp32", "epochs": 5},
    }
    return Recipe.model_validate(values | changes)


class Slow(TinySource):
    """Every image takes a second of the clock."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__(24)
        self.clock = clock

    def read(self, index: int) -> Image:
        self.clock[0] += 1
        return super().read(index)


def test_time_is_that_of_the_second_step_loading_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(rehearsal, "build_source", lambda recipe: Slow(clock))
    found = rehearse(recipe(loader={"cache_mb": 0}), tmp_path)
    assert found.steps == 30
    assert found.seconds == 30 * 4
    assert found.images_per_s == 1


def test_losses_memory_disk_and_a_contact_sheet_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(trainer: Any) -> Any:
        captured = capture(trainer)
        sizes.extend(t.nbytes for group in captured[0].values() for t in group.values())
        assert trainer.step == 2
        return captured

    monkeypatch.setattr(rehearsal, "capture", watched)
    found = rehearse(recipe(checkpoint={"keep": 3}), tmp_path)
    assert found.losses.keys() == {"losses/res", "losses/total"}
    assert found.peak_mib > 1
    assert 3 * sum(sizes) / 2**20 < found.disk_mib < 4 * sum(sizes) / 2**20
    assert (found.images, found.looked_at, dict(found.unreadable)) == (24, 8, {})
    with PillowImage.open(found.sheet) as picture:
        assert picture.size[0] > 5 * 2 * 16  # crop, clean, image, restored, error; enlarged


def test_a_source_for_one_step_is_rehearsed_with_one(tmp_path: Path) -> None:
    found = rehearse(recipe(data={"name": "small-set", "n": 4}), tmp_path)
    assert (found.steps, found.looked_at) == (5, 4)


def test_what_the_run_would_stumble_over_is_said_now(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite at step"):
        rehearse(recipe(data={"name": "poisoned", "n": 4}), tmp_path)
    with pytest.raises(DataError, match="the source has 3"):
        rehearse(recipe(data={"name": "small-set", "n": 3}), tmp_path)


@pytest.mark.slow
def test_data_workers_end_with_a_rehearsal_that_fails(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())
    data = {"name": "poisoned", "n": 4}
    with pytest.raises(DivergedError) as failed:
        rehearse(recipe(data=data, loader={"workers": 1}), tmp_path)
    assert failed.traceback  # holds the frames, and with them the loader
    for process in set(multiprocessing.active_children()) - others:
        process.join(5)
        assert not process.is_alive()


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    pixels = np.arange(40 * 40, dtype=np.uint8).reshape(40, 40)
    for number in range(7):
        PillowImage.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    data = {"name": "folder", "path": str(tmp_path)}
    found = rehearse(recipe(data=data, loader={"max_unreadable": 0.5}), tmp_path / "out")
    assert list(found.unreadable) == ["bad.png"]
