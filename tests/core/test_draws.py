"""Draws: Philox against its published vectors, then laws and independence of what is made of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from dira_core.draws import Draws, shuffled
from dira_core.philox import philox, words

N = 4096
ALPHA = 1e-4
"""Seeds are fixed, so a test passes for good; this is how surprising it may have been."""


def draws(n: int = N, *, seed: int = 3, epoch: int = 0, view: int = 0, path: str = "op") -> Draws:
    return Draws(torch.arange(n), seed=seed, epoch=epoch, view=view, path=path)


def plain_philox(counter: list[int], key: int) -> list[int]:
    """Philox4x32-10 word by word, as the paper defines a round (Salmon et al., section 3.3)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key % 2**32, key // 2**32
    for _ in range(10):
        first, second = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (
            (second // 2**32) ^ x1 ^ k0,
            second % 2**32,
            (first // 2**32) ^ x3 ^ k1,
            first % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [x0, x1, x2, x3]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            0xFFFFFFFFFFFFFFFF,
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: str, key: int, expected: str) -> None:
    words = [int(word, 16) for word in counter.split()]
    result = philox(torch.tensor(words), key)
    assert [f"{word:08x}" for word in result.tolist()] == expected.split()
    assert [f"{word:08x}" for word in plain_philox(words, key)] == expected.split()


def test_philox_equals_plain_integers_on_random_counters() -> None:
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 5, 7), generator=generator)
    key = 0xFEDCBA9876543210
    expected = [[plain_philox(counters[:, i, j].tolist(), key) for j in range(7)] for i in range(5)]
    assert torch.equal(philox(counters.clone(), key), torch.tensor(expected))


@pytest.mark.parametrize(("samples", "blocks"), [(1, 1), (5, 3), (3000, 7), (2, 20_000), (4, 0)])
def test_the_words_of_samples_are_those_of_their_counters(samples: int, blocks: int) -> None:
    index, key = torch.arange(samples) * 7 + 2**33 - 9, 0xFEDCBA9876543210
    counters = torch.zeros(4, samples, blocks, dtype=torch.int64)
    counters[0], counters[1] = (index % 2**32)[:, None], (index // 2**32)[:, None]
    counters[2] = torch.arange(blocks)
    found = words(index, blocks, key)
    assert torch.equal(found, philox(counters, key).flatten(1))
    assert found.dtype == torch.int64


def test_uniform_fills_the_unit_interval_evenly() -> None:
    numbers = draws().uniform("x", shape=(4, 5))
    assert numbers.shape == (N, 4, 5)
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > ALPHA
    for element in numbers.flatten(1).T:
        assert stats.kstest(element.numpy(), "uniform").pvalue > ALPHA / 20
    assert abs(numbers.mean() - 1 / 2) < 4 * (1 / 12 / numbers.numel()) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 4 * (1 / 180 / numbers.numel()) ** 0.5


def test_uniform_keeps_to_bounds_that_broadcast() -> None:
    low = torch.tensor([[-1.0, 2.0, 5.0]]).expand(N, 3).clone()
    high = low + torch.tensor([0.5, 3.0, 0.0])
    numbers = draws().uniform("x", low, high, (3,))
    assert (numbers[:, 2] == 5).all()
    for column, (loc, scale) in enumerate([(-1, 0.5), (2, 3)]):
        assert (numbers[:, column] >= loc).all()
        assert (numbers[:, column] < loc + scale).all()
        assert stats.kstest(numbers[:, column].numpy(), "uniform", (loc, scale)).pvalue > ALPHA


def test_uniform_never_rounds_up_to_its_upper_bound() -> None:
    # Float32 has no number between these two: half of the numbers would round up.
    numbers = draws().uniform("x", 4096.0, 4096.0 + 2**-11, (16,))
    assert (numbers == 4096.0).all()


def test_integers_are_uniform_within_their_bounds() -> None:
    numbers = draws().integers("x", -3, 8, (3,))
    assert numbers.dtype == torch.int64
    counts = torch.bincount(numbers.flatten() + 3)
    assert len(counts) == 11
    assert numbers.min() == -3
    assert stats.chisquare(counts.numpy()).pvalue > ALPHA


def test_integers_take_bounds_by_element() -> None:
    low = torch.tensor([0, 10, -5])
    high = torch.tensor([1, 14, 1000])
    numbers = draws().integers("x", low, high, (2, 3))
    assert ((numbers >= low) & (numbers < high)).all()
    assert stats.chisquare(torch.bincount(numbers[..., 1].flatten() - 10).numpy()).pvalue > ALPHA
    by_sample = torch.arange(1, N + 1)[:, None]
    assert (draws().integers("y", 0, by_sample, (2,)) < by_sample).all()


def test_bernoulli_is_true_with_its_probability() -> None:
    for p in (0.0, 0.1, 0.8, 1.0):
        share = draws().bernoulli(f"x{p}", p, (4,)).double().mean()
        assert abs(share - p) <= 4 * (p * (1 - p) / (4 * N)) ** 0.5


def test_choice_follows_its_weights_and_never_takes_a_weight_of_zero() -> None:
    weights = [0.0, 3.0, 1.0, 0.0, 6.0, 0.0]
    counts = torch.bincount(draws().choice("x", weights, (4,)).flatten(), minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    expected = torch.tensor([0.3, 0.1, 0.6], dtype=torch.float64) * 4 * N
    assert stats.chisquare(counts[[1, 2, 4]].numpy(), expected.numpy()).pvalue > ALPHA


def test_normal_numbers_are_standard_and_uncorrelated() -> None:
    numbers = draws().normal("x", (3, 3))
    assert numbers.shape == (N, 3, 3)
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > ALPHA
    correlation = torch.corrcoef(numbers.flatten(1).T) - torch.eye(9)
    assert correlation.abs().max() < 5 / N**0.5


def test_permutations_are_permutations_and_all_equally_likely() -> None:
    orders = draws().permutation("x", 4)
    assert torch.equal(orders.sort(1).values, torch.arange(4).expand(N, 4))
    codes = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    counts = torch.bincount(torch.tensor([codes[tuple(o)] for o in orders.tolist()]), minlength=24)
    assert stats.chisquare(counts.numpy()).pvalue > ALPHA


def independent(a: Tensor, b: Tensor) -> bool:
    """Say whether two rows of uniform numbers look independent: correlation, and an 8 x 8 table."""
    cells = (a * 8).long() * 8 + (b * 8).long()
    table = torch.bincount(cells, minlength=64).view(8, 8).numpy()
    straight = stats.pearsonr(a.numpy(), b.numpy()).pvalue
    return bool(min(straight, stats.chi2_contingency(table).pvalue) > ALPHA)


OTHERS = {
    "slot": draws().uniform("y"),
    "seed": draws(seed=4).uniform("x"),
    "epoch": draws(epoch=1).uniform("x"),
    "view": draws(view=1).uniform("x"),
    "path": draws(path="other").uniform("x"),
    "child": draws().child("0").uniform("x"),
    "next sample": draws(N + 1).uniform("x")[1:],
    "next element": draws().uniform("x", shape=(2,))[:, 1],
    "next block": draws().uniform("x", shape=(5,))[:, 4],
}


@pytest.mark.parametrize("what", OTHERS)
def test_numbers_are_independent_of_those_of_another(what: str) -> None:
    assert independent(draws().uniform("x"), OTHERS[what])


def test_all_words_of_a_block_are_used() -> None:
    numbers = draws(64).uniform("x", shape=(64,))
    assert len(numbers.unique()) > 0.99 * numbers.numel()


def test_a_number_does_not_depend_on_the_batch_or_the_place_in_it() -> None:
    index = torch.tensor([7, 2**40 + 7, 3, 2**33, 0])
    batch = Draws(index, seed=1, path="op")
    for make in (
        lambda d: d.uniform("x", 2.0, 5.0, (3, 3)),
        lambda d: d.integers("x", 0, 1000, (7,)),
        lambda d: d.normal("x", (5,)),
        lambda d: d.permutation("x", 9),
        lambda d: d.choice("x", [1.0, 2.0]),
    ):
        together = make(batch)
        alone = [make(Draws(index[i : i + 1], seed=1, path="op")) for i in range(5)]
        assert torch.equal(together, torch.cat(alone))
        assert torch.equal(make(batch.select(torch.tensor([4, 1]))), together[[4, 1]])
        mask = index < 2**33
        assert torch.equal(make(batch.select(mask)), together[mask])


def test_views_that_are_made_together_draw_what_each_draws_alone() -> None:
    together = draws(5).of_views([2, 0])
    alone = torch.cat([draws(5, view=view).uniform("x", shape=(3,)) for view in (2, 0)])
    assert torch.equal(together.uniform("x", shape=(3,)), alone)
    rows = torch.tensor([9, 1, 0])
    assert torch.equal(
        together.select(rows).child("a").uniform("x"), together.child("a").uniform("x")[rows]
    )


def test_high_words_of_the_index_count() -> None:
    index = torch.tensor([7, 2**32 + 7, 2**40 + 7])
    assert len(Draws(index, seed=1).uniform("x").unique()) == 3


def test_the_first_numbers_do_not_depend_on_how_many_are_drawn() -> None:
    few, many = draws(8).uniform("x", shape=(3,)), draws(8).uniform("x", shape=(50,))
    assert torch.equal(few, many[:, :3])
    few, many = draws(8).normal("x", (3,)), draws(8).normal("x", (50,))
    assert torch.equal(few, many[:, :3])


def test_the_same_question_has_the_same_answer() -> None:
    one, other = draws(8).child("a"), draws(8).child("a")
    one.uniform("something else")
    assert torch.equal(one.uniform("x"), other.uniform("x"))
    assert one.path == "op/a"
    assert torch.equal(
        draws(8).child("a").select(torch.tensor([5])).uniform("x"),
        draws(8).select(torch.tensor([5])).child("a").uniform("x"),
    )


def test_no_samples_and_no_elements_are_fine() -> None:
    assert draws(0).uniform("x", shape=(3,)).shape == (0, 3)
    assert draws(3).uniform("x", shape=(0,)).shape == (3, 0)


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    first, again = shuffled(1000, seed=5, epoch=0), shuffled(1000, seed=5, epoch=0)
    assert torch.equal(first, again)
    assert torch.equal(first.sort().values, torch.arange(1000))
    for other in (shuffled(1000, seed=5, epoch=1), shuffled(1000, seed=6, epoch=0)):
        assert abs(stats.spearmanr(first.numpy(), other.numpy()).statistic) < 4 / 1000**0.5
    assert abs(stats.spearmanr(first.numpy(), range(1000)).statistic) < 4 / 1000**0.5
