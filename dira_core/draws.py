"""Random numbers that are a function, not a state.

A number depends on (seed, epoch, index of the sample, view, operation, slot, element) and nothing
else: not on the batch a sample falls into, the worker, the process, or what was drawn before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from dira_core.noise import Noise, bits_of, keys_of
from dira_core.philox import words

_VIEW = 48
"""The bit from which the number of a view stands, above the index of a sample."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of one operation for a batch of samples.

    The same slot gives the same numbers every time, so different decisions need different slots.
    The first numbers of a slot do not depend on how many are drawn.

    Attributes:
        index: (B,) int64 below 2**48, position of each sample in its source; decides the device.
        seed: Of the run.
        epoch: Counts passes over the source.
        view: Number of the view, or (B,) int64, one for each sample: those of several views that
            are made at once are the ones that each view has by itself.
        path: Name of the operation, with those that contain it: "distort/0/one-of/2".
    """

    index: Tensor
    _: KW_ONLY
    seed: int
    epoch: int = 0
    view: int | Tensor = 0
    path: str = ""

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return len(self.index)

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self.index.device

    def child(self, name: str) -> Draws:
        """Return the draws of an operation inside this one."""
        return dataclasses.replace(self, path=f"{self.path}/{name}")

    def of_views(self, numbers: Sequence[int]) -> Draws:
        """Return the draws of several views of these samples: all of one view, then the next."""
        view = torch.tensor(numbers, device=self.device).repeat_interleave(self.batch_size)
        return dataclasses.replace(self, index=self.index.repeat(len(numbers)), view=view)

    def select(self, rows: Tensor) -> Draws:
        """Return the draws of some samples; `rows` is (B,) bool, or int64 places in the batch."""
        view = self.view[rows] if isinstance(self.view, Tensor) else self.view
        return dataclasses.replace(self, index=self.index[rows], view=view)

    def uniform(
        self,
        slot: str,
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
        shape: Sequence[int] = (),
    ) -> Tensor:
        """Return (B, *shape) float32 in [low, high); bounds broadcast. Equal bounds give `low`."""
        unit = self._words(slot, shape).bitwise_right_shift_(8).float().mul_(2.0**-24)
        if not isinstance(low, Tensor) and not isinstance(high, Tensor):
            return unit if (low, high) == (0, 1) else _between(low, high, unit)
        low, high = self._bound(low), self._bound(high)
        # Rounding may lift the largest numbers onto `high`, which the interval leaves out.
        return torch.minimum(low + (high - low) * unit, torch.nextafter(high, low))

    def integers(
        self, slot: str, low: int | Tensor, high: int | Tensor, shape: Sequence[int] = ()
    ) -> Tensor:
        """Return (B, *shape) int64, low <= x < high with high - low < 2**31; bounds broadcast."""
        return (self._words(slot, shape) * (high - low) >> 32) + low

    def bernoulli(self, slot: str, p: float | Tensor, shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) bool, true with probability p."""
        return self.uniform(slot, shape=shape) < p

    def choice(self, slot: str, weights: Sequence[float], shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) int64, i with probability weights[i] / sum(weights)."""
        edges = list(itertools.accumulate(weights))
        upper = torch.tensor([edge / edges[-1] for edge in edges], device=self.device)
        return torch.searchsorted(upper, self.uniform(slot, shape=shape), right=True)

    def normal(self, slot: str, shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) float32 standard normal numbers (Box-Muller)."""
        size = math.prod(shape)
        unit = self.uniform(slot, shape=(-(-size // 2), 2))
        radius = (-2 * torch.log1p(-unit[..., 0])).sqrt()
        angle = 2 * math.pi * unit[..., 1]
        pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
        return pairs.flatten(1)[:, :size].view(self.batch_size, *shape)

    def permutation(self, slot: str, n: int) -> Tensor:
        """Return (B, n) int64, a permutation of 0..n-1 for every sample."""
        return self._words(slot, (n,)).argsort(dim=1, stable=True)

    def noise(self, slot: str, shape: Sequence[int]) -> Noise:
        """Return cheap uniform noise of a shape, for the pixels of images; see `Noise`."""
        return Noise(keys_of(self._samples(), self._key(slot)), tuple(shape))

    def bits(self, slot: str, n: int) -> Tensor:
        """Return (B, n) int64 of 64 random bits, in a fraction of the time of the others."""
        return bits_of(keys_of(self._samples(), self._key(slot)), n)

    def _words(self, slot: str, shape: Sequence[int]) -> Tensor:
        """Return (B, *shape) int64 words of 32 bits."""
        size = math.prod(shape)
        found = words(self._samples(), -(-size // 4), self._key(slot))
        return found[:, :size].view(self.batch_size, *shape)

    def _key(self, slot: str) -> int:
        """Return 64 bits that are those of a slot alone.

        The 0 stands for a first view: what has no views, as splits, keeps its numbers.
        """
        name = repr((self.seed, self.epoch, 0, self.path, slot)).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")

    def _samples(self) -> Tensor:
        """Return a number for each view of each sample, (B,) int64."""
        return self.index + (self.view << _VIEW)

    def _bound(self, value: float | Tensor) -> Tensor:
        """Return a bound as a float32 tensor, made on the device without a copy to it."""
        if isinstance(value, Tensor):
            return value.float()
        return torch.full((), value, device=self.device, dtype=torch.float32)


def _between(low: float, high: float, unit: Tensor) -> Tensor:
    """Map numbers in [0, 1) to [low, high), in place; what a tensor for each bound would give."""
    first, last = np.float32(low), np.float32(high)
    highest = np.nextafter(last, first)
    return unit.mul_(float(last - first)).add_(float(first)).clamp_(max=float(highest))


def salted(seed: int, salt: int) -> int:
    """Return a seed of its own for every salt; salt 0 keeps the recipe's."""
    return seed + (salt << 32)


def shuffled(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return (n,) int64: the order in which an epoch visits n samples."""
    everyone = Draws(torch.zeros(1, dtype=torch.int64), seed=seed, epoch=epoch, path="shuffled")
    return everyone.permutation("order", n)[0]


def shuffled_in_blocks(sizes: Sequence[int], together: int, *, seed: int, epoch: int) -> Tensor:
    """Return (n,) int64: an order that has to do with few blocks of consecutive samples at a time.

    The blocks are shuffled, then the samples of each `together` blocks.

    Args:
        sizes: Samples of one block after the other.
        together: Blocks whose samples are mixed.
        seed: Of the run.
        epoch: Counts passes over the source.
    """
    number = shuffled(len(sizes), seed=seed, epoch=epoch).argsort()
    group = (number // together).repeat_interleave(torch.tensor(sizes))
    samples = shuffled(len(group), seed=seed, epoch=epoch)
    return samples[group[samples].argsort(stable=True)]
