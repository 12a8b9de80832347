"""What processes know together, against the same rows in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from world import WORLD, together

from dira_core import gather_rows


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_in_one_process_rows_are_returned_as_they_are() -> None:
    given = rows(3, 2)
    assert gather_rows(given) is given


def test_rows_are_joined_in_the_order_of_the_ranks_and_keep_their_type(tmp_path: Path) -> None:
    whole, index = rows(6, 2, 3), torch.arange(6)

    def work(rank: int) -> dict[str, Tensor]:
        mine = whole.chunk(WORLD)[rank].transpose(1, 2)
        return {"rows": gather_rows(mine), "index": gather_rows(index.chunk(WORLD)[rank])}

    for found in together(tmp_path, work):
        assert torch.equal(found["rows"], whole.transpose(1, 2))
        assert torch.equal(found["index"], index)


def test_gradients_averaged_over_processes_are_those_of_one(tmp_path: Path) -> None:
    """The loss mixes rows of both processes, so that a gradient lost on the way shows."""
    whole, weight = rows(6, 4), rows(4, 4)

    def loss(z: Tensor) -> Tensor:
        return (z @ z.T).logsumexp(1).sum()

    def gradient(z_of: Tensor, gathered: bool) -> Tensor:
        w = weight.clone().requires_grad_()
        z = z_of @ w
        (found,) = torch.autograd.grad(loss(gather_rows(z) if gathered else z), [w])
        return found

    def work(rank: int) -> dict[str, Tensor]:
        return {"gradient": gradient(whole.chunk(WORLD)[rank], gathered=True)}

    first, second = together(tmp_path, work)
    mean = (first["gradient"] + second["gradient"]) / 2
    torch.testing.assert_close(mean, gradient(whole, gathered=False))


def test_gradients_shared_with_another_tensor_are_not_written_to(tmp_path: Path) -> None:
    """A sum hands one and the same gradient to both of its terms."""

    def work(rank: int) -> dict[str, Tensor]:
        a, b = (rows(3, 2).requires_grad_() for _ in range(2))
        ((gather_rows(a) + gather_rows(b)) * rows(6, 2)).sum().backward()
        assert a.grad is not None
        assert b.grad is not None
        return {"a": a.grad, "b": b.grad}

    for found, own in zip(together(tmp_path, work), rows(6, 2).chunk(WORLD), strict=True):
        assert torch.equal(found["a"], WORLD * own)
        assert torch.equal(found["b"], WORLD * own)
