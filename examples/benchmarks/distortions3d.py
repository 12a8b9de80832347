"""How much faster dira distorts a batch of volumes than a loop over samples does.

    python examples/benchmarks/distortions3d.py

The loops say plainly, in NumPy and SciPy, what Models Genesis and TransVW do to one volume, and
stack a batch of them; dira makes the views of such a batch as a run on a CPU does. Both leave the
crops as they were, which a Restorer needs too. They take turns of some batches, and printed is the
median time of each for one batch on one thread, in processor time, which other work on the machine
changes little; and that of a bare copy of the batch, less than which none can take. Needs scipy.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from dira_core.data.dataset import Crops
from dira_core.memory import keep_freed
from dira_core.settings import Settings
from dira_core.types import View
from dira_core.views import ViewMaker

Loop = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Distorts one volume (D, H, W)."""


def elastic(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Push voxels around within their slice, by smooth fields: alpha 991, sigma 8 voxels."""
    shape = volume.shape
    down, right = (
        gaussian_filter(random.random(shape) * 2 - 1, 8, mode="constant") * 991 for _ in range(2)
    )
    z, y, x = np.indices(shape)
    return map_coordinates(volume, [z, y + down, x + right], order=1, mode="reflect")


def bent(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Map intensities by a cubic Bezier curve of 100,000 points, rising or falling."""
    t = np.linspace(0, 1, 100_000)
    points = np.array([[0, 0], random.random(2), random.random(2), [1, 1]])
    x, y = (
        sum(math.comb(3, k) * t**k * (1 - t) ** (3 - k) * points[k, axis] for k in range(4))
        for axis in (0, 1)
    )
    x, y = np.sort(x), np.sort(y)
    return np.interp(volume, x, y if random.random() < 0.5 else y[::-1])


def shuffled(windows: int) -> Loop:
    """Return a loop that shuffles the voxels inside of so many windows."""

    def shuffle(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
        result = volume.copy()
        for _ in range(windows):
            window = []
            for extent in volume.shape:
                side = random.integers(1, extent // 10 + 1)
                first = random.integers(0, extent - side + 1)
                window.append(slice(first, first + side))
            values = volume[tuple(window)].flatten()
            random.shuffle(values)
            result[tuple(window)] = values.reshape(result[tuple(window)].shape)
        return result

    return shuffle


def block(
    shape: tuple[int, ...],
    low: list[int],
    high: list[int],
    margin: list[int],
    random: np.random.Generator,
) -> tuple[slice, ...]:
    """Return a random block whose sides are low to high, with a margin to the border."""
    window = []
    for extent, smallest, largest, border in zip(shape, low, high, margin, strict=True):
        side = random.integers(smallest, largest + 1)
        first = random.integers(border, extent - side - border + 1)
        window.append(slice(first, first + side))
    return tuple(window)


def inpainted(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Fill one block, a sixth to a third of the volume wide, with noise."""
    low, high = ([extent // by for extent in volume.shape] for by in (6, 3))
    margin = [round(3 / 64 * extent) for extent in volume.shape]
    result = volume.copy()
    window = block(volume.shape, low, high, margin, random)
    result[window] = random.random(result[window].shape)
    return result


def outpainted(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Keep one block, three to four sevenths of the volume wide; the rest is noise."""
    low, high = ([round(part * extent) for extent in volume.shape] for part in (3 / 7, 4 / 7))
    margin = [round(3 / 64 * extent) for extent in volume.shape]
    result = random.random(volume.shape)
    window = block(volume.shape, low, high, margin, random)
    result[window] = volume[window]
    return result


def one_of_four(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Do what TransVW does to a volume: bend its space, then one of the others, as often each."""
    others = (bent, shuffled(5), inpainted, outpainted)
    return others[random.integers(4)](elastic(volume, random), random)


FEW = {"name": "pixel-shuffle", "windows": 5}
OUTPAINT = {"name": "noise-outpaint", "blocks": 1}
FOUR = {"name": "one-of", "of": ["bezier", FEW, "noise-inpaint", OUTPAINT], "weights": [0.25] * 4}

CONTESTS: dict[str, tuple[Loop, list[Any]]] = {
    "elastic": (elastic, ["elastic"]),
    "non-linear": (bent, ["bezier"]),
    "local shuffling, 10,000 windows": (
        shuffled(10_000),
        [{"name": "pixel-shuffle", "windows": 10_000}],
    ),
    "local shuffling, 5 windows": (shuffled(5), [FEW]),
    "in-painting": (inpainted, ["noise-inpaint"]),
    "out-painting": (outpainted, [OUTPAINT]),
    "TransVW: elastic, one of four": (one_of_four, ["elastic", FOUR]),
}
"""The loop, and what it is called in `views.distort` of a recipe."""


def distorter(choices: list[Any], volumes: np.ndarray) -> Callable[[int], View]:
    """Return what makes views of volumes (B, 1, D, H, W) in an epoch, as a run on a CPU does."""
    settings = Settings.model_validate({"views": {"distort": choices}})
    maker = ViewMaker(settings, torch.device("cpu"), n_views=1)
    edges = torch.tensor([[0.0, extent] for extent in volumes.shape[2:]])
    crops = Crops(
        pixels=(torch.from_numpy(volumes),),
        box=edges.expand(len(volumes), 1, -1, -1),
        index=torch.arange(len(volumes)),
    )
    return lambda epoch: maker(crops, epoch, salt=0).views[0]


def seconds(work: Callable[[int], object], numbers: Iterable[int]) -> float:
    """Return the processor time of this thread that some batches take; the last one is kept."""
    started = time.thread_time()
    for number in numbers:
        _kept = work(number)  # as a training step keeps a batch while the next one is made
    return time.thread_time() - started


def race(works: Sequence[Callable[[int], object]], rounds: int, batches: int) -> list[float]:
    """Return the median seconds of each work on a batch; all take turns, the first is no race."""
    turns = [range(turn * batches, (turn + 1) * batches) for turn in range(rounds + 1)]
    times = [[seconds(work, numbers) for work in works] for numbers in turns]
    return [median(spent) / batches for spent in zip(*times[1:], strict=True)]


def one_by_one(loop: Loop, volumes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Distort volumes (B, 1, D, H, W) one after the other, as a data set does, and stack them."""
    return np.stack([loop(volume[0], random) for volume in volumes])[:, None]


def main() -> None:
    """Race all contests and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="volumes of a batch")
    parser.add_argument(
        "--size", type=int, nargs=3, default=(32, 64, 64), help="depth height width"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns that each takes")
    parser.add_argument("--batches", type=int, default=4, help="batches of a turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed(torch.device("cpu"))  # as a run does; the loops have it too
    random = np.random.default_rng(0)
    volumes = random.random((given.batch, 1, *given.size), np.float32)
    kept = np.zeros_like(volumes)
    print(f"{'':32}{'loop, ms':>10}{'dira, ms':>10}{'faster':>10}{'copy, ms':>10}")
    for name, (loop, choices) in CONTESTS.items():
        works = (
            lambda _, loop=loop: one_by_one(loop, volumes, random),
            distorter(choices, volumes),
            lambda _: np.copyto(kept, volumes),
        )
        slow, fast, copy = race(works, given.rounds, given.batches)
        figures = f"{1000 * slow:10.2f}{1000 * fast:10.2f}{slow / fast:10.1f}{1000 * copy:10.2f}"
        print(f"{name:32}{figures}")


if __name__ == "__main__":
    main()
