"""Exact reformulations and the published forms they stand for, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core.losses import barlow_twins, info_nce
from dira_core.nn.layers import mlp
from dira_core.nn.resnet import ResNet
from dira_core.nn.teacher import Teacher

LAMBD = 0.0051
TEMPERATURE = 0.2
MOMENTUM = 0.99

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Contest:
    """Ways to compute the same tensors.

    Attributes:
        arms: Ways by name, ours is "dira"; the first call is the one that must be exact.
        truth: The published way in float64; called before any arm.
    """

    arms: Mapping[str, Callable[[], Sequence[Tensor]]]
    truth: Callable[[], Sequence[Tensor]]


def barlow_contest(n: int, dim: int) -> Contest:
    """Compare Barlow Twins' loss and its gradients for `n` images, `dim` dimensions."""
    z1 = _randn(n, dim, seed=1)
    views = z1, z1 + 0.5 * _randn(n, dim, seed=2)
    losses: dict[str, Loss] = {
        "dira": partial(barlow_twins, lambd=LAMBD),
        "published": partial(published_barlow_twins, lambd=LAMBD),
    }
    with suppress(ImportError):
        from lightly.loss import BarlowTwinsLoss  # type: ignore[import-untyped] # it has none

        losses["lightly"] = BarlowTwinsLoss(LAMBD)
    return Contest(
        {name: partial(_differentiate, loss, *views) for name, loss in losses.items()},
        lambda: _differentiate(losses["published"], *(view.double() for view in views)),
    )


def published_barlow_twins(z1: Tensor, z2: Tensor, lambd: float) -> Tensor:
    """Write Zbontar et al., arXiv:2103.03230, algorithm 1, straight down: C is (D, D)."""
    norm = partial(F.batch_norm, running_mean=None, running_var=None, training=True)
    n, dim = z1.shape
    c = norm(z1).T @ norm(z2) / n
    off_diagonal = c.flatten()[1:].view(dim - 1, dim + 1)[:, :-1]
    return (1 - c.diagonal()).square().sum() + lambd * off_diagonal.square().sum()


def info_nce_contest(n: int, size: int, dim: int = 128) -> Contest:
    """Compare MoCo's loss and its gradient for `n` queries and a queue of `size` keys."""
    shapes = (n, dim), (n, dim), (size, dim)
    queries, keys, negatives = (
        F.normalize(_randn(*shape, seed=seed)) for seed, shape in enumerate(shapes)
    )
    queue = negatives.T.contiguous()  # as the public code keeps it
    return Contest(
        {
            "dira": lambda: _differentiate(
                lambda q: info_nce(q, keys, negatives, TEMPERATURE), queries
            ),
            "published": lambda: _differentiate(
                lambda q: published_info_nce(q, keys, queue), queries
            ),
        },
        lambda: _differentiate(
            lambda q: published_info_nce(q, keys.double(), queue.double()), queries.double()
        ),
    )


def published_info_nce(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Write He et al., arXiv:1911.05722, algorithm 1, straight down; the queue is (D, K)."""
    positive = torch.einsum("nc,nc->n", queries, keys).unsqueeze(1)
    negative = torch.einsum("nc,ck->nk", queries, queue.clone().detach())
    logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def teacher_contest(students: Sequence[nn.Module]) -> Contest:
    """Compare an update of a momentum teacher whose weights are not its students'."""
    teacher = Teacher(students)
    copies = tuple(p for module in copy.deepcopy(students) for p in module.parameters())
    weights = [p for module in students for p in module.parameters()]
    with torch.no_grad():
        for seed, weight in enumerate(weights):
            weight.copy_(_randn(*weight.shape, seed=seed))
    own = tuple(teacher.parameters())

    def ours() -> Sequence[Tensor]:
        teacher.update(MOMENTUM)
        return own

    def published() -> Sequence[Tensor]:
        for copied, weight in zip(copies, weights, strict=True):
            copied.data = copied.data * MOMENTUM + weight.data * (1 - MOMENTUM)
        return copies

    @torch.no_grad()
    def truth() -> Sequence[Tensor]:
        pairs = zip(copies, weights, strict=True)
        return [c.double() * MOMENTUM + w.double() * (1 - MOMENTUM) for c, w in pairs]

    return Contest({"dira": ours, "published": published}, truth)


def mocov2_students() -> list[nn.Module]:
    """Return a ResNet-50 and MoCo-v2's head: 28 million parameters."""
    return [ResNet(50, 3, zero_init_residual=False), mlp([2048, 2048, 128], norm=False)]


CONTESTS: dict[str, Callable[[], Contest]] = {
    "barlow twins, n=128 d=8192": lambda: barlow_contest(128, 8192),
    "info nce, n=128 k=65536": lambda: info_nce_contest(128, 65536),
    "teacher, 28 M parameters": lambda: teacher_contest(mocov2_students()),
}


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _differentiate(loss: Loss, *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]
