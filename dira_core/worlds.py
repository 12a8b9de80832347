"""For plugin authors: several processes must train as one does. Behind `dira_core.testing`."""

from __future__ import annotations

import math
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_map_only

from dira_core.build import build_trio
from dira_core.game import Game
from dira_core.layering import Layer
from dira_core.parallel import entire
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.roles import Backbone, Source
from dira_core.tensorfiles import read_tensors, write_tensors
from dira_core.trainer import Setback, Trainer

Tensors = dict[str, Tensor]


def check_world_size(
    values: Mapping[str, Any],
    parts: Callable[[], tuple[Backbone, Source]],
    *,
    processes: int = 2,
    tolerance: float = 1e-5,
    double: bool = True,
) -> None:
    """Compare five steps of several processes (gloo) with those of one, on the same global batch.

    Batch norms are synchronised. Compared are the losses of every step, the gradients of the first
    one, and all weights and buffers after the last.

    Networks compute in float64 (losses in float32, as always): what float32 rounds turns single
    ReLUs at their kink, and with them gradients by a hundred times what it rounds.

    Args:
        values: A recipe, nested as in its file; `train.batch_size` is that of all processes.
        parts: Builds backbone and source; at least five batches of images.
        processes: How many.
        tolerance: Of a tensor's difference, relative to the largest norm of its kind; without
            `double`, gradients may differ a hundred times as much.
        double: Whether networks compute in float64; false for those that cannot.

    Raises:
        ValueError: Something differs; the message names the first of it and how much. Or the batch
            cannot be split among the processes.
    """
    together = _settled(values, processes)
    alone = run_in_processes(lambda rank: steps(_settled(values, 1), parts, double), 1)[0]
    many = run_in_processes(lambda rank: steps(together, parts, double), processes)
    for rank, found in enumerate(many):
        of_gradients = tolerance if double else 100 * tolerance
        compare(alone, found, tolerance, of_gradients, f"rank {rank} of {processes}")


def steps(
    recipe: Recipe, parts: Callable[[], tuple[Backbone, Source]], double: bool = False
) -> Tensors:
    """Train for the steps of one epoch; return losses, gradients and state, whole."""
    if double:  # this process is here for nothing else
        torch.set_default_dtype(torch.float64)
        register_module_forward_pre_hook(lambda module, given: tree_map_only(Tensor, wide, given))
    backbone, source = parts()
    game = Game(build_trio(recipe, backbone), source, recipe)
    recorder = Recorder(game)
    with closing(game.loader):
        game.trainer.fit(recorder)
    found = recorder.found
    for player in game.trainer.players:
        state = player.module.state_dict()
        found |= {f"{player.name}.{name}": entire(value) for name, value in state.items()}
    return found


def wide(tensor: Tensor) -> Tensor:
    """Return floating point numbers in float64, others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


class Recorder:
    """Keep the losses of every step, and the gradients of the first.

    Later gradients differ by more than rounding: weights that differ by a bit turn single ReLUs.
    """

    def __init__(self, game: Game) -> None:
        self.found: Tensors = {}
        self._features = game.features()

    def epoch_started(self, trainer: Trainer) -> None:
        """Let the Discriminator prepare its epoch."""
        for player in trainer.players:
            player.epoch_started(trainer.progress, self._features)

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Keep them."""
        for name, value in metrics.items():
            if name.startswith("losses/"):
                self.found[f"{name} of step {trainer.step}"] = torch.tensor(value)
        if trainer.step > 1:
            return
        for player in trainer.players:
            for name, parameter in player.module.named_parameters():
                if parameter.grad is not None:
                    gradient = entire(parameter.grad).clone()
                    self.found[f"gradient of {player.name}.{name}"] = gradient

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        """Give up."""
        raise setback


def compare(
    expected: Tensors, found: Tensors, tolerance: float, of_gradients: float, who: str
) -> None:
    """Raise a ValueError that names the first tensor which differs too much."""
    if differing := expected.keys() ^ found.keys():
        raise ValueError(f"{who} has other tensors than one process: {sorted(differing)}")
    for name, difference in differences(expected, found).items():
        if not difference <= (of_gradients if name.startswith("gradient") else tolerance):
            raise ValueError(f"{name} of {who} differs by {difference:.1e} from one process")


def differences(expected: Tensors, found: Tensors) -> dict[str, float]:
    """Return by how much each tensor differs, relative to the largest norm of its kind.

    Not to its own: a bias before a batch norm has a gradient of 0 but for rounding. Of integers
    any difference is infinite.
    """
    norms = {name: float(value.double().norm()) for name, value in expected.items()}
    largest: dict[str, float] = {}
    for name, norm in norms.items():
        if expected[name].is_floating_point():
            largest[kind(name)] = max(norm, largest.get(kind(name), 0.0))
    off = {n: float((v.double() - found[n].double()).norm()) for n, v in expected.items()}
    scale = {
        name: largest[kind(name)] if value.is_floating_point() else 0.0
        for name, value in expected.items()
    }
    return {n: d and (d / scale[n] if scale[n] else math.inf) for n, d in off.items()}


def kind(name: str) -> str:
    """Return whether a tensor is a loss, or gradient or state of which player.

    All losses are of one kind: a mean cosine near 0 is exact to the rounding of its terms only.
    """
    return name.partition("/")[0].partition(".")[0]


def run_in_processes(work: Callable[[int], Tensors], processes: int) -> list[Tensors]:
    """Return what `work(rank)` returns in each of several processes that are joined by gloo.

    Raises:
        RuntimeError: One of them raised; its traceback is on stderr.
    """
    import_module("torch._inductor")  # optimizers load it: once here, not once in every process
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        members = [_fork(work, rank, processes, folder) for rank in range(processes)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in members]
        if any(codes):
            raise RuntimeError(f"processes ended with exit codes {codes}")
        return [read_tensors(folder / f"{rank}.safetensors") for rank in range(processes)]


def _fork(work: Callable[[int], Tensors], rank: int, processes: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
        )
        write_tensors(folder / f"{rank}.safetensors", work(rank))
        dist.destroy_process_group()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _settled(values: Mapping[str, Any], processes: int) -> Recipe:
    """Return the recipe of one of several processes: fp32, synchronised, everything logged.

    Raises:
        ValueError: The batch cannot be split among them.
    """
    train = dict(values.get("train", {}))
    batch = train.get("batch_size", 12)
    train["batch_size"], left = divmod(batch, processes)
    if left:
        raise ValueError(
            f"a batch of {batch} images cannot be split among {processes} processes: give a "
            f"train.batch_size that {processes} divides, or other processes"
        )
    fixed = {
        "train": train | {"precision": "fp32", "sync_norm": True, "epochs": 1},
        "log": {"every": 1, "probe": False},
        "health": {"every": 2},
    }
    return resolve([Layer("check", {**values, **fixed})]).recipe
