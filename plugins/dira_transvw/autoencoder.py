"""Features of whole volumes: an autoencoder without skips, so that all goes through its code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dira_core import batch_norm, conv, mean_squared, upsample

STRIDE = 16
"""Voxels of a thumbnail's side that become one of the deepest map."""

WIDTHS = (16, 32, 64, 128)
BATCH = 8
RATE = 1e-3
HALVED_AFTER, STOPPED_AFTER = 20, 50
"""Epochs without a better loss on held-out volumes; batch and rate, too, are the public code's."""


@dataclass(frozen=True)
class Fit:
    """What training came to.

    Attributes:
        features: (N, dim) float32.
        explained: Part of the variance of held-out thumbnails that they explain: 0 is what the mean
            thumbnail explains, 1 all.
        epochs: That it took.
    """

    features: np.ndarray
    explained: float
    epochs: int


class Autoencoder(nn.Module):
    """Turn thumbnails (B, 1, *grid) into codes (B, dim) and back.

    The public code pools the bottleneck of a U-Net, whose skips let it restore a volume while the
    bottleneck says little (its issues 3 and 7). Here nothing goes round the code.
    """

    def __init__(self, grid: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self._deepest = [side // STRIDE for side in grid]
        cells = math.prod(self._deepest) * WIDTHS[-1]
        downs = zip((1, *WIDTHS), WIDTHS, strict=False)
        self.down = nn.Sequential(*(_layer(*pair, stride=2) for pair in downs))
        self.to_code, self.from_code = nn.Linear(cells, dim), nn.Linear(dim, cells)
        back = WIDTHS[::-1]
        self.up = nn.ModuleList(_layer(*pair) for pair in pairwise(back))
        self.last = conv(3, back[-1], 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return codes (B, dim)."""
        code: Tensor = self.to_code(self.down(images).flatten(1))
        return code

    def forward(self, images: Tensor) -> Tensor:
        maps = self.from_code(self.encode(images)).view(len(images), WIDTHS[-1], *self._deepest)
        for layer in self.up:
            maps = layer(upsample(maps, [2 * side for side in maps.shape[2:]]))
        restored: Tensor = self.last(maps).sigmoid()  # half as fine: the last doubling is cheap
        return interpolate(restored, images.shape[2:], mode="trilinear")


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv(3, inputs, outputs, stride=stride, bias=False), batch_norm(3, outputs), nn.ReLU()
    )


def fit(
    thumbnails: np.ndarray,
    held_out: np.ndarray,
    dim: int,
    epochs: int,
    seed: int,
    tick: Callable[[], object],
) -> Fit:
    """Train an autoencoder on thumbnails, and return the codes of all.

    Adam, mean squared error; the rate is halved, and training stopped early, by the loss on
    held-out volumes; the best epoch is kept. The same seed and machine give the same bits.

    Args:
        thumbnails: (N, *grid) in [0, 1].
        held_out: (N,) bool: not trained on.
        dim: Of a code.
        epochs: At most.
        seed: Of weights and order.
        tick: Called after each epoch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(thumbnails.shape[1:], dim).to(device)
    images = torch.from_numpy(thumbnails).unsqueeze(1)
    training, watched = images[~held_out], images[held_out]
    watched = watched if len(watched) else training
    done = _descend(network, training, watched, epochs, seed, device, tick)
    with torch.no_grad():
        codes = [
            network.encode(part.float().to(device)).cpu() for part in torch.split(images, BATCH)
        ]
    mean = training.float().mean(0, keepdim=True)
    spread = float((watched.float() - mean).square().mean())
    left = _loss(network, watched, device)
    return Fit(torch.cat(codes).numpy(), 1 - left / max(spread, 1e-12), done)


def _descend(
    network: Autoencoder,
    training: Tensor,
    watched: Tensor,
    epochs: int,
    seed: int,
    device: torch.device,
    tick: Callable[[], object],
) -> int:
    """Train, put the best epoch's weights back, and return how many epochs there were."""
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=HALVED_AFTER, factor=0.5
    )
    order = torch.Generator().manual_seed(seed)
    best, best_at, kept = math.inf, 0, copy.deepcopy(network.state_dict())
    for epoch in range(epochs):
        network.train()
        for rows in torch.split(torch.randperm(len(training), generator=order), BATCH):
            if len(rows) == 1 and len(training) > 1:
                continue  # a batch norm of one
            batch = training[rows].float().to(device)
            optimizer.zero_grad()
            torch.autograd.backward(mean_squared(network(batch), batch))
            optimizer.step()
        network.eval()
        loss = _loss(network, watched, device)
        schedule.step(loss)
        if loss < best:
            best, best_at, kept = loss, epoch, copy.deepcopy(network.state_dict())
        tick()
        if epoch - best_at >= STOPPED_AFTER:
            break
    network.load_state_dict(kept)
    network.eval()
    return epoch + 1


@torch.no_grad()
def _loss(network: Autoencoder, images: Tensor, device: torch.device) -> float:
    parts = [part.float().to(device) for part in torch.split(images, BATCH)]
    return sum(float((network(part) - part).square().sum()) for part in parts) / images.numel()
