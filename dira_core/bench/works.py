"""Pieces of work that processes do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from dira_core.bench.contests import MOMENTUM, mocov2_students
from dira_core.bench.step import advance
from dira_core.build import build_source, build_trio
from dira_core.distributed import gather_rows, world_size
from dira_core.game import Game, shared_out
from dira_core.nn.teacher import Teacher
from dira_core.parallel import chosen_strategy
from dira_core.recipe import Recipe

ROWS, DIM = 128, 8192
"""Embeddings of all processes together, and their width, as Barlow Twins has them."""

Work = Callable[[], object]


def whole_step(recipe: Recipe, strategy: str) -> Work:
    """Train one step, views included, data not."""
    train = recipe.train.model_copy(update={"processes": 1, "strategy": strategy})
    recipe = shared_out(recipe.model_copy(update={"train": train}))
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()
    return lambda: advance(game.trainer, crops)


def gathered_embeddings(recipe: Recipe, strategy: str) -> Work:
    """Gather the embeddings of two views, with the way back of their gradients."""
    views = torch.randn(ROWS // world_size(), 2, DIM, requires_grad=True)
    pull = torch.randn(ROWS, 2, DIM)
    return lambda: torch.autograd.grad(gather_rows(views, same_loss=True), views, pull)


def reduced_correlation(recipe: Recipe, strategy: str) -> Work:
    """Add up the correlation matrix over processes, as the published code does."""
    correlation = torch.randn(DIM, DIM)
    return lambda: dist.all_reduce(correlation)


class Students(nn.Module):
    """A ResNet-50 with MoCo-v2's head, and their teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.students = nn.ModuleList(mocov2_students())
        self.teacher = Teacher([*self.students])


def teacher_update(recipe: Recipe, strategy: str) -> Work:
    """Move a teacher of 28 million weights."""
    torch.manual_seed(0)
    sharing, students = chosen_strategy(strategy), Students()
    sharing.wrap(students)

    def work() -> None:
        with sharing.changing():
            students.teacher.update(MOMENTUM)

    return work


WORKS: Mapping[str, Callable[[Recipe, str], Work]] = {
    "step": whole_step,
    "gather": gathered_embeddings,
    "all-reduce": reduced_correlation,
    "teacher": teacher_update,
}
