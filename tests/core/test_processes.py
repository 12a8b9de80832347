"""Whole steps of two processes: number formats, a scaler they share, shared batches, compiling."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor

from dira_core.build import build_trio, seeded
from dira_core.errors import RecipeError
from dira_core.game import Game, shared_out
from dira_core.layering import Layer
from dira_core.parallel import entire
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.resume import capture, restore
from dira_core.testing import TinyBackbone, TinySource
from dira_core.trainer import Trainer
from dira_core.worlds import run_in_processes

Found = dict[str, Tensor]
WORLD = 2


def game(processes: int, **train: Any) -> Game:
    """Build a whole trio; the global batch is of twelve images."""
    slow = {"name": "sgd", "lr": 0.001, "lr_batch": "none"}
    values = {
        "data": {"name": "phantom", "n": 120},
        "backbone": "resnet18",
        "discriminator": {"name": "simsiam", "dim": 16, "hidden": 16},
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "adversary": {"name": "patchgan", "widths": [4, 4, 4, 4]},
        "views": {"size": 32, "distort": ["inner-cutout"]},
        "optimizer": slow,
        "critic_optimizer": slow,
        "train": {"batch_size": 12 // processes, "sync_norm": True, **train},
        "log": {"every": 1},
        "health": {"every": 2},
    }
    chosen = resolve([Layer("test", values)]).recipe
    with seeded(1, "backbone"):
        backbone = TinyBackbone()
    return Game(build_trio(chosen, backbone), TinySource(120), chosen)


def state(trainer: Trainer) -> Found:
    """Return all weights and buffers, whole."""
    return {
        f"{player.name}.{name}": entire(value).clone()
        for player in trainer.players
        for name, value in player.module.state_dict().items()
    }


def trained(processes: int, steps: int = 3, **train: Any) -> Found:
    """Return the state after some steps, and the total loss of each."""
    playing, losses = game(processes, **train), {}
    trainer = playing.trainer
    with closing(playing.loader):
        for pieces in trainer.steps():
            metrics = trainer.train_step(pieces)
            trainer.step += 1
            losses[f"loss {trainer.step}"] = torch.tensor(metrics["losses/total"])
            if trainer.step == steps:
                break
    return losses | state(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_of_two_processes_is_that_of_one_but_for_its_own_rounding(strategy: str) -> None:
    alone = run_in_processes(lambda rank: trained(1, precision="bf16"), 1)[0]
    plain = run_in_processes(lambda rank: trained(1, precision="fp32"), 1)[0]
    both = run_in_processes(lambda rank: trained(WORLD, precision="bf16", strategy=strategy), WORLD)
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert not torch.equal(alone["loss 1"], plain["loss 1"])
    for name, value in alone.items():
        assert value.dtype == both[0][name].dtype
        torch.testing.assert_close(both[0][name], value, rtol=0.03, atol=0.003, msg=name)


def scaled(rank: int, strategy: str, overflowing: int | None) -> Found:
    """Take two fp16 steps; the images of one process are much too large in the second one."""
    playing = game(WORLD, precision="fp16", strategy=strategy)
    trainer, found = playing.trainer, {}
    scale = 256.0  # at which these gradients fit
    trainer.precision.load_state_dict(trainer.precision.state_dict() | {"scale": scale})
    with closing(playing.loader):
        for pieces in trainer.steps():
            if trainer.step == 1:
                found = {f"before {name}": value for name, value in state(trainer).items()}
                if rank == overflowing:
                    gradients_overflow(trainer)
            trainer.train_step(pieces)
            trainer.step += 1
            if trainer.step == 2:
                break
    now = trainer.precision.state_dict()["scale"]
    return found | state(trainer) | {"scaled": torch.tensor(now / scale)}


def gradients_overflow(trainer: Trainer) -> None:
    """Let the gradient of this process's model be infinite, while its losses are not."""
    parameter = next(trainer.players[0].module.parameters())

    def infinite(gradient: Tensor) -> Tensor:
        return gradient * torch.inf

    if trainer.settings.train.strategy == "ddp":
        parameter.register_hook(infinite)
        return
    original = trainer.players[0].wrapped.forward

    def forward(batch: Any) -> Any:
        attempt = original(batch)
        attempt.restored.register_hook(infinite)
        return attempt

    trainer.players[0].wrapped.forward = forward  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("overflowing", [0, 1])
def test_where_fp16_overflows_on_one_process_all_skip_the_step_alike(
    strategy: str, overflowing: int
) -> None:
    both = run_in_processes(lambda rank: scaled(rank, strategy, overflowing), WORLD)
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    assert both[0]["scaled"] == 0.5
    found = both[0]
    weights = [n for n in found if f"before {n}" in found and n.endswith((".weight", ".bias"))]
    model = [n for n in weights if n.startswith("model.")]
    critic = [n for n in weights if n.startswith("critic.")]
    assert all(torch.equal(found[n], found[f"before {n}"]) for n in model)
    assert not all(torch.equal(found[n], found[f"before {n}"]) for n in critic)


def moved(before: str, after: str) -> Found:
    """Take a step, hand everything on to another strategy (or the same one), and take another."""
    first, then = (game(WORLD, strategy=strategy) for strategy in (before, after))
    with closing(first.loader), closing(then.loader):
        first.trainer.train_step(next(first.trainer.steps()))
        first.trainer.step += 1
        tensors, kept = capture(first.trainer)
        whole = {
            file: {name: entire(value).clone() for name, value in group.items()}
            for file, group in tensors.items()
        }
        restore(then.trainer, whole, kept)
        then.trainer.train_step(next(then.trainer.steps()))
    return state(then.trainer)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_run_goes_on_under_another_strategy_as_under_its_own(before: str, after: str) -> None:
    changed = run_in_processes(lambda rank: moved(before, after), WORLD)[0]
    same = run_in_processes(lambda rank: moved(before, before), WORLD)[0]
    for name, value in same.items():
        torch.testing.assert_close(changed[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_where_nothing_overflows_fp16_steps_and_keeps_its_scale() -> None:
    found = run_in_processes(lambda rank: scaled(rank, "ddp", None), WORLD)[0]
    assert found["scaled"] == 1
    name = "model.backbone.stages.0.0.weight"
    assert not torch.equal(found[name], found[f"before {name}"])


def recipe_with(**train: Any) -> Recipe:
    chosen = {"data": "phantom", "backbone": "resnet18", "discriminator": "simsiam"}
    return Recipe.model_validate({**chosen, "train": train})


@pytest.mark.parametrize(
    ("world", "meant", "batch", "expected"),
    [(1, None, 8, 8), (4, None, 8, 8), (2, 1, 8, 4), (1, 4, 8, 32), (3, 2, 6, 4), (2, 2, 5, 5)],
)
def test_the_global_batch_is_kept_on_another_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, world: int, meant: int | None, batch: int, expected: int
) -> None:
    monkeypatch.setattr("dira_core.game.world_size", lambda: world)
    shared = shared_out(recipe_with(batch_size=batch, processes=meant))
    assert (shared.train.batch_size, shared.train.processes) == (expected, world)
    assert shared.train.batch_size * world == batch * (meant or world)
    assert shared_out(shared) == shared


def test_a_global_batch_that_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dira_core.game.world_size", lambda: 3)
    with pytest.raises(RecipeError, match="8 images on each of 2 processes .* among 3"):
        shared_out(recipe_with(batch_size=8, processes=2))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_networks_compute_what_they_did(recompute: bool) -> None:
    def first(**train: Any) -> Found:
        return trained(1, steps=1, precision="fp32", **train)

    expected, found = first(), first(compile=True, recompute=recompute)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
