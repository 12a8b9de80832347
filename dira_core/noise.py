"""Uniform noise for images: a counter scrambled briefly, the same bits on every device.

Filling a volume takes a twentieth of the time that `philox` takes, which makes decisions. Two
random words a sample are its key; the scrambler is "lowbias32" of C. Wellons' hash prospector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_WORD, _HALF = 0xFFFFFFFF, 0xFFFF
_STEP = 2.0**-16


@dataclass(frozen=True)
class Noise:
    """One number in [0, 1), a multiple of 2**-16, for each element of each sample.

    Neighbours, 2 i and 2 i + 1 in the flattened sample, are the two halves of a word.

    Attributes:
        keys: (B, 2) int64, words of 32 bits; decides the device.
        shape: Of a sample.
    """

    keys: Tensor
    shape: tuple[int, ...]

    def whole(self) -> Tensor:
        """Return all of it, (B, *shape) float32."""
        size = math.prod(self.shape)
        pairs = -(-size // 2)
        if self.keys.device.type == "cpu":
            found = torch.empty(len(self.keys), 2 * pairs)
            numbers = np.arange(pairs, dtype=np.uint32)
            words, scratch = np.empty_like(numbers), np.empty_like(numbers)
            for row, key in zip(found.numpy(), self.keys.tolist(), strict=True):
                _scramble(numbers, key, words, scratch)
                np.multiply(words.view(np.uint16), np.float32(_STEP), out=row)
        else:
            found = _scrambled_on_device(self.keys, pairs).float().mul_(_STEP)
        return found[:, :size].view(-1, *self.shape)

    def inside(self, row: int, place: Sequence[slice]) -> np.ndarray:
        """Return what one sample has in a block; on the CPU."""
        numbers: np.ndarray = np.zeros((), np.uint32)
        for part, extent in zip(place, self.shape, strict=True):
            along = np.arange(extent, dtype=np.uint32)[part]
            numbers = numbers[..., None] * np.uint32(extent) + along
        words, scratch = np.empty_like(numbers), np.empty_like(numbers)
        _scramble(numbers >> np.uint32(1), self.keys[row].tolist(), words, scratch)
        words >>= numbers % np.uint32(2) * np.uint32(16)
        words &= np.uint32(_HALF)
        found: np.ndarray = np.multiply(words, np.float32(_STEP), dtype=np.float32)
        return found


def _scramble(
    numbers: np.ndarray, key: Sequence[int], words: np.ndarray, scratch: np.ndarray
) -> None:
    """Scramble counters into `words`; `scratch` is memory to work in; all are uint32."""
    np.add(numbers, np.uint32(key[0]), out=words)
    words ^= np.right_shift(words, np.uint32(16), out=scratch)
    words *= np.uint32(_FIRST)
    words ^= np.uint32(key[1])
    words ^= np.right_shift(words, np.uint32(15), out=scratch)
    words *= np.uint32(_SECOND)
    words ^= np.right_shift(words, np.uint32(16), out=scratch)


def _scrambled_on_device(keys: Tensor, pairs: int) -> Tensor:
    """Return the halves of the words of each sample, (B, 2 * pairs) int64."""
    words = torch.arange(pairs, device=keys.device) + keys[:, :1] & _WORD
    words ^= words >> 16
    words = words * _FIRST & _WORD ^ keys[:, 1:]
    words ^= words >> 15
    words = words * _SECOND & _WORD
    words ^= words >> 16
    return torch.stack((words & _HALF, words >> 16), -1).flatten(1)
