"""Scramble counters into random words: the same bits on every device.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox4x32-10.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
import torch
from torch import Tensor

WORD = 0xFFFFFFFF

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_AT_ONCE = 2**13
"""Counters that stay in a processor's cache while they are scrambled."""


def words(index: Tensor, blocks: int, key: int) -> Tensor:
    """Return the random words of samples: counters are (low index, high index, block, 0).

    Args:
        index: (B,) int64; decides the device.
        blocks: Counters of a sample.
        key: 64 bits; the lower word is the first.

    Returns:
        (B, 4 * blocks) int64, words of 32 bits.
    """
    if index.device.type == "cpu":
        return torch.from_numpy(_words_on_cpu(index.numpy(), blocks, key))
    counter = index.new_zeros(4, len(index), blocks)
    counter[0] = (index & WORD)[:, None]
    counter[1] = (index >> 32 & WORD)[:, None]
    counter[2] = torch.arange(blocks, device=index.device)
    return philox(counter, key).flatten(1)


def philox(counter: Tensor, key: int) -> Tensor:
    """Scramble counters; a product of 32-bit words wraps in int64 as in uint64.

    Args:
        counter: (4, ...) int64, four words of 32 bits; used as memory to work in.
        key: 64 bits; the lower word is the first.

    Returns:
        (..., 4) int64, four words of 32 bits.
    """
    even, odd = counter[::2], counter[1::2]
    product = torch.empty_like(even)
    column = (2, *[1] * (counter.dim() - 1))
    first = torch.tensor(_MULTIPLIERS, device=counter.device).view(column)
    multipliers = (first, first.flip(0))
    pairs = [pair if number % 2 else pair[::-1] for number, pair in enumerate(_round_keys(key))]
    keys = torch.tensor(pairs, device=counter.device).view(_ROUNDS, *column)
    half, word = torch.tensor((32, WORD), device=counter.device).unbind(0)
    top, bottom = even.unbind(0)
    # A round exchanges the two halves. Leaving both where they are, and exchanging the constants
    # instead, lets one call work on both; after an even number of rounds all is in place again.
    for number, round_key in enumerate(keys.unbind(0)):
        torch.mul(even, multipliers[number % 2], out=product)
        torch.bitwise_right_shift(product, half, out=even)
        top.bitwise_xor_(odd[1])
        bottom.bitwise_xor_(odd[0])
        even.bitwise_xor_(round_key).bitwise_and_(word)
        odd, product = product, odd
    odd.bitwise_and_(word)
    return torch.stack((top, odd[0], bottom, odd[1]), -1)


def _round_keys(key: int) -> list[tuple[int, int]]:
    """Return the two key words of each round."""
    steps = enumerate([_KEY_STEPS] * _ROUNDS)
    return [((key + n * a) & WORD, ((key >> 32) + n * b) & WORD) for n, (a, b) in steps]


@functools.lru_cache(1024)
def _round_columns(key: int) -> list[np.ndarray]:
    """Return the key words of each round, (2, 1); an epoch asks with the same keys."""
    return list(np.array(_round_keys(key), np.uint32)[..., None])


def _words_on_cpu(index: np.ndarray, blocks: int, key: int) -> np.ndarray:
    """Return what `words` does: numpy starts an operation in a fraction of torch's time."""
    found = np.empty((len(index), blocks, 4), np.int64)
    rows, step = max(1, _AT_ONCE // max(1, blocks)), max(1, min(blocks, _AT_ONCE))
    keys = _round_columns(key)
    for row in range(0, len(index), rows):
        samples = index[row : row + rows].astype(np.uint64)
        for block in range(0, blocks, step):
            numbers = np.arange(block, min(block + step, blocks), dtype=np.uint64)
            place = found[row : row + rows, block : block + step]
            place[...] = _scrambled(samples, numbers, keys).reshape(place.shape)
    return found.reshape(len(index), 4 * blocks)


def _scrambled(samples: np.ndarray, numbers: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """Scramble the counters of some samples and blocks: (samples * blocks, 4) uint32."""
    even, odd = np.zeros((2, 2, len(samples), len(numbers)), np.uint32)
    even[0], odd[0] = (samples & _MASK)[:, None], (samples >> _HALF)[:, None]
    even[1] = numbers
    even, odd = even.reshape(2, -1), odd.reshape(2, -1)
    # Words lie in halves of products: while one is written, `odd` is still in the other.
    products = np.empty((2, *even.shape), np.uint64)
    halves = products[:, ::-1].view(np.uint32).reshape(2, *even.shape, 2)
    here, there = zip(products, halves[..., _HIGH], halves[..., 1 - _HIGH], strict=True)
    for round_key in keys:
        product, high, low = here
        np.multiply(even, _FACTORS, out=product)
        np.bitwise_xor(high, odd, out=even)
        even ^= round_key
        odd, here, there = low, there, here
    return np.stack((even[0], odd[0], even[1], odd[1]), -1)


_FACTORS = np.array(_MULTIPLIERS, np.uint64)[:, None]
_HALF, _MASK = np.uint64(32), np.uint64(WORD)
_HIGH = int(sys.byteorder == "little")
