"""The order of an epoch, and its batches: made in the trainer's process or in workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dira_core.data.dataset import CropDataset, Crops, Making, Request
from dira_core.data.workers import Workers
from dira_core.distributed import rank, world_size
from dira_core.draws import salted, shuffled, shuffled_in_blocks
from dira_core.errors import DataError

if TYPE_CHECKING:
    from dira_core.roles import Source
    from dira_core.settings import Settings


class Loader:
    """Yield the batches of any epoch, from any image on; the last, incomplete batch is dropped.

    A batch is a function of the recipe and of its place in the epoch: the number of workers, what
    was read before and a resumed run change nothing. Of several processes, each makes its part of
    a batch of `batch_size` images a process.

    Args:
        source: Where images come from.
        settings: Of the run; say how they are cropped and by how many workers.
        n_views: Crops of an image.
        timeout: Seconds to wait for a batch of the workers before the storage is said to hang.

    Attributes:
        batch_size: Images of a batch in this process.
        batches_per_epoch: Complete batches of an epoch, over all processes.
        unreadable: Images met so far that cannot be read, and why.
        spent: What all crops so far took, by whoever made them.

    Raises:
        DataError: The source has fewer images than one step needs.
    """

    def __init__(
        self, source: Source, settings: Settings, n_views: int, *, timeout: float = 300.0
    ) -> None:
        self.batch_size = settings.train.batch_size
        self._all = self.batch_size * world_size()
        self.batches_per_epoch = len(source) // self._all
        needed = self._all * settings.train.accumulate
        if len(source) < needed:
            raise DataError(
                f"a step needs {needed} images, the source has {len(source)}: choose a smaller "
                "--batch-size or more data"
            )
        self.unreadable: dict[int, str] = {}
        self.spent = Making()
        self._n = len(source)
        self._blocks = source.blocks
        self._seed = settings.seed
        self._dataset = CropDataset(source, settings, n_views)
        self._workers: Workers | None = None
        if settings.loader.workers:
            pinned = settings.train.device != "cpu" and torch.cuda.is_available()
            self._workers = Workers(
                self._dataset, settings.loader.workers, timeout=timeout, pinned=pinned
            )

    def order(self, epoch: int, salt: int = 0) -> Tensor:
        """Return the order of the images in an epoch, (N,) int64; `salt` gives another one."""
        seed = salted(self._seed, salt)
        if self._blocks is None:
            return shuffled(self._n, seed=seed, epoch=epoch)
        sizes, together = self._blocks.sizes.tolist(), self._blocks.together
        return shuffled_in_blocks(sizes, together, seed=seed, epoch=epoch)

    def crops(self, indices: Sequence[int], epoch: int, salt: int = 0) -> Crops:
        """Return the crops of some images in an epoch, made in this process."""
        return self._dataset.crops(Request(indices, epoch, salt))

    def batches(self, epoch: int, start: int = 0, salt: int = 0) -> Iterator[Crops]:
        """Yield the batches of an epoch.

        Args:
            epoch: Number of the epoch.
            start: Images of this epoch that were used already.
            salt: Gives another order and other crops, after a run went back.

        Raises:
            DataError: Too many images are unreadable, or a worker died or hangs.
            ResourceError: A worker was killed, mostly for memory.
        """
        order = self.order(epoch, salt).tolist()
        own, size = rank() * self.batch_size, self.batch_size
        firsts = range(start + own, self._n - self._all + own + 1, self._all)
        requests = [Request(order[i : i + size], epoch, salt) for i in firsts]
        made = (
            self._workers.answers(requests) if self._workers else map(self._dataset.crops, requests)
        )
        for crops in made:
            self.unreadable.update(crops.unreadable)
            self.spent = self.spent.plus(crops.spent)
            yield crops

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers is not None:
            self._workers.close()
