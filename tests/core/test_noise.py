"""Cheap noise: uniform, without likeness between pixels or images, the same on every road."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dira_core import Draws
from dira_core.noise import _scrambled_on_device

ALPHA = 1e-4


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.arange(n), seed=seed, path="op")


def test_it_is_the_scrambler_as_published_with_its_key_in_the_middle() -> None:
    noise = draws(2).noise("slot", (3, 5))
    whole = noise.whole().flatten(1)
    for row, (low, high) in enumerate(noise.keys.tolist()):
        for number in range(15):
            x = (number // 2 + low) % 2**32
            x = (x ^ x >> 16) * 0x7FEB352D % 2**32 ^ high
            x = (x ^ x >> 15) * 0x846CA68B % 2**32
            x ^= x >> 16
            assert whole[row, number].item() == (x >> 16 * (number % 2)) % 2**16 / 2**16


def test_a_block_has_the_numbers_that_the_whole_has_there() -> None:
    noise = draws(3).noise("slot", (2, 7, 5, 9))
    place = (slice(None), slice(2, 6), slice(0, 3), slice(4, 9))
    assert np.array_equal(noise.inside(1, place), noise.whole()[1].numpy()[place])


def test_other_devices_scramble_the_same_bits() -> None:
    noise = draws(5).noise("slot", (64,))
    halves = _scrambled_on_device(noise.keys, 32)
    assert torch.equal(halves.float() / 2**16, noise.whole())


def test_numbers_are_uniform_and_neighbours_and_images_have_nothing_in_common() -> None:
    found = draws(40, seed=3).noise("slot", (1, 64, 64)).whole().flatten(1).double()
    assert stats.kstest(found.flatten().numpy() + 2.0**-17, "uniform").pvalue > ALPHA
    for shift in (1, 2, 3, 64, 65):
        first, second = found[:, :-shift].flatten(), found[:, shift:].flatten()
        assert stats.pearsonr(first.numpy(), second.numpy()).pvalue > ALPHA
    between = np.corrcoef(found.numpy())[np.triu_indices(40, 1)]
    assert np.abs(between).max() < 6 / 64
    bits = (found * 2**16).long()
    for bit in range(16):
        ones = int((bits >> bit & 1).sum())
        assert stats.binomtest(ones, found.numel()).pvalue > ALPHA


@pytest.mark.parametrize("seed", [1, 2])
def test_each_sample_has_its_own_whatever_the_batch(seed: int) -> None:
    whole = draws(6, seed).noise("slot", (9,)).whole()
    alone = draws(6, seed).select(torch.tensor([4])).noise("slot", (9,)).whole()
    assert torch.equal(alone[0], whole[4])
    assert len({tuple(row.tolist()) for row in whole}) == 6
