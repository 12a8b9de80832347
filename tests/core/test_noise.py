"""Cheap noise: uniform, without likeness between pixels or images, the same on every road."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dira_core import Draws
from dira_core.noise import _mixed, keys_of

ALPHA = 1e-4


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.arange(n), seed=seed, path="op")


def stream(start: int, number: int) -> int:
    """Word `number` of the SplitMix64 stream that begins at `start`, as published."""
    z = (start + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def unsigned(words: Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


def test_bits_are_streams_as_published_one_for_each_sample() -> None:
    assert stream(0, 0) == 0xE220A8397B1DCDAF  # the first word of the reference implementation
    keys = unsigned(keys_of(torch.arange(3), 2**64 - 5))
    assert keys == [stream(2**64 - 5, number) for number in range(3)]
    keys = unsigned(draws(3).noise("slot", (1,)).keys)
    for row, key in zip(draws(3).bits("slot", 5), keys, strict=True):
        assert unsigned(row) == [stream(key, number) for number in range(5)]


def test_numbers_are_parts_of_shared_words_times_a_key_of_the_sample() -> None:
    noise = draws(2).noise("slot", (3, 6))
    whole = noise.whole()
    for row, key in enumerate(unsigned(noise.keys)):
        for line, column in itertools.product(range(3), range(6)):
            word = stream(0, 2 * line + column // 4) * (key | 1) % 2**64
            part = (word ^ word >> 32) >> 16 * (column % 4) & 0xFFFF
            assert whole[row, line, column].item() == part / 2**16


@pytest.mark.parametrize("width", [8, 9, 10, 11])
def test_a_block_gets_the_numbers_that_the_whole_has_there(width: int) -> None:
    noise = draws(3).noise("slot", (2, 7, 5, width))
    place = (slice(None), slice(2, 6), slice(0, 3), slice(4, 9))
    for block in (place, (slice(None),) * 4, (*place[:3], slice(3, 4))):
        image = np.full((2, 7, 5, width), -1, np.float32)
        noise.writers()[1](image, block)
        assert np.array_equal(image[block], noise.whole()[1].numpy()[block])
        image[block] = -1
        assert (image == -1).all()


def test_other_devices_scramble_the_same_bits() -> None:
    words = torch.arange(-500, 500) * 0x123456789ABCDEF
    assert np.array_equal(_mixed(words).numpy(), _mixed(words.numpy()))


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
