"""The queue against a plain list of the last keys."""

from __future__ import annotations

import itertools

import pytest
import torch

from dira_core import Queue

SIZE, DIM = 7, 3


def newest_last(queue: Queue) -> tuple[torch.Tensor, torch.Tensor]:
    """Unroll the ring: the oldest key first."""
    start = int(queue.cursor)
    return queue.keys.roll(-start, 0), queue.index.roll(-start)


@pytest.fixture
def queue() -> Queue:
    torch.manual_seed(0)
    return Queue(SIZE, DIM)


def test_it_starts_with_random_unit_vectors_of_nobody(queue: Queue) -> None:
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(SIZE))
    assert queue.keys.unique(dim=0).shape == (SIZE, DIM)
    assert (queue.index == -1).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 20])
def test_it_holds_the_last_keys_for_any_size_of_the_batch(queue: Queue, batch: int) -> None:
    count = itertools.count()
    pushed = list(queue.keys.clone())
    owners = [-1] * SIZE
    for _ in range(5):
        keys, index = torch.randn(batch, DIM), torch.tensor([next(count) for _ in range(batch)])
        queue.push(keys, index)
        pushed += [*keys]
        owners += index.tolist()
        held, whose = newest_last(queue)
        assert torch.equal(held, torch.stack(pushed[-SIZE:]))
        assert whose.tolist() == owners[-SIZE:]


def test_batches_of_changing_size_are_no_trouble(queue: Queue) -> None:
    sizes = [2, 5, 1, 9, 3, 4]
    index = torch.arange(sum(sizes))
    keys = torch.randn(sum(sizes), DIM)
    for batch, whose in zip(keys.split(sizes), index.split(sizes), strict=True):
        queue.push(batch, whose)
    held, whose = newest_last(queue)
    assert torch.equal(held, keys[-SIZE:])
    assert torch.equal(whose, index[-SIZE:])


def test_it_takes_keys_of_half_precision_without_a_gradient(queue: Queue) -> None:
    keys = torch.randn(2, DIM, dtype=torch.bfloat16, requires_grad=True)
    queue.push(keys, torch.arange(2))
    assert torch.equal(queue.keys[:2], keys.float())
    assert not queue.keys.requires_grad


def test_an_images_own_keys_and_nobodys_are_excluded(queue: Queue) -> None:
    queue.push(torch.randn(5, DIM), torch.tensor([8, 3, 8, 4, 0]))
    excluded = queue.excluded(torch.tensor([8, 1, 0]))
    assert excluded.int().tolist() == [
        [1, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
    ]


def test_its_state_is_all_there_is(queue: Queue) -> None:
    queue.push(torch.randn(5, DIM), torch.arange(5))
    other = Queue(SIZE, DIM)
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push(torch.ones(4, DIM), torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers(), strict=True))
