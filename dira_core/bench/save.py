"""What a checkpoint costs: the step that waits for it, the disk, and torch's own files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from dira_core.bench.timing import Arm, Cores, alternate, ratio
from dira_core.build import build_source, build_trio
from dira_core.checkpoint import Checkpoints
from dira_core.data.dataset import Crops
from dira_core.files import writing
from dira_core.game import Game
from dira_core.memory import uncollected
from dira_core.recipe import Recipe
from dira_core.resume import capture
from dira_core.saving import Saver
from dira_core.tensorfiles import read_tensors
from dira_core.trainer import Trainer


def save(recipe: Recipe, rounds: int, place: Path) -> dict[str, Any]:
    """Compare saving and loading all that a run needs with torch.save and torch.load.

    Args:
        recipe: Of the run.
        rounds: Times each is measured.
        place: A folder on the disk to measure; nothing stays there.

    Returns:
        Times in ms (least, median, most), ratios, sizes, and how busy other processes kept the
        machine.
    """
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()
    game.trainer.train_step([crops])  # its optimizers have their state now
    cores = Cores()
    with writing(place):
        hidden = tempfile.TemporaryDirectory(dir=place, prefix=".dira-bench-")
    with hidden as folder, uncollected():
        saves = Saves(game.trainer, crops, Path(folder))
        timings = alternate(saves.arms(), rounds)
        on_disk = sum(file.stat().st_size for file in saves.newest().iterdir())
    used = cores.used()
    held = [t for group in capture(game.trainer)[0].values() for t in group.values()]
    size = sum(tensor.nbytes for tensor in held)
    return {
        "ms": {name: timing.ms() for name, timing in timings.items() if name != "the rest"},
        "torch.save / hold": ratio(timings, "torch.save", "hold"),
        "save in the step / torch.save": ratio(timings, "save in the step", "torch.save"),
        "torch.load / load": ratio(timings, "torch.load", "load"),
        "step while saving / step": ratio(timings, "step while saving", "step"),
        "tensors": len(held),
        "MiB": size / 2**20,
        "files / tensors": on_disk / size,
        "threads": torch.get_num_threads(),
        "cores used": used,
        "rounds": rounds,
    }


class Saves:
    """Ways to save a trainer, and to load what was saved.

    Args:
        trainer: Whose optimizers have their state.
        crops: Of one step.
        folder: Where to.
    """

    def __init__(self, trainer: Trainer, crops: Crops, folder: Path) -> None:
        self._trainer = trainer
        self._crops = crops
        self._checkpoints = Checkpoints(folder / "dira", keep=2)
        self._theirs = folder / "checkpoint.pth"
        self._behind = Saver(self._checkpoints, background=True)
        self._at_once = Saver(self._checkpoints, background=False)
        self._saves = 0

    def arms(self) -> dict[str, Arm]:
        """Return what is timed, in the order in which it must be done."""
        return {
            "hold": lambda: self._save(self._behind),
            "step while saving": self._step,
            "the rest": self._behind.wait,
            "step": self._step,
            "until on disk": self._save_and_wait,
            "save in the step": lambda: self._save(self._at_once),
            "torch.save": self._torch_save,
            "load": self._load,
            "load, verified": lambda: self._checkpoints.load(self.newest()),
            "torch.load": lambda: torch.load(self._theirs, weights_only=True),
        }

    def newest(self) -> Path:
        """Return the last checkpoint."""
        return max(self._checkpoints.folder.iterdir())

    def _save(self, saver: Saver) -> None:
        self._saves += 1
        optimizers = [player.optimizer for player in self._trainer.players]
        saver.save(self._saves, *capture(self._trainer), optimizers=optimizers)

    def _save_and_wait(self) -> None:
        self._save(self._behind)
        self._behind.wait()

    def _step(self) -> None:
        self._trainer.train_step([self._crops])

    def _torch_save(self) -> None:
        torch.save(capture(self._trainer), self._theirs)

    def _load(self) -> None:
        for file in self.newest().glob("*.safetensors"):
            read_tensors(file)
