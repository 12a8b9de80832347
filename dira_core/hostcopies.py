"""Copies of tensors in host memory that is taken once and used again, save after save."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dira_core.errors import ResourceError
from dira_core.shards import Groups

Place = tuple[str, str]
"""A file and the name of a tensor in it."""

LINE = 64
"""A copy starts at a multiple of this many bytes."""

THREADS = 2
"""Copy at most: the memory is the limit, not the processor."""


class HostCopies:
    """Hold tensors still while training changes them: a save of them can take its time.

    A copy has the memory layout of its tensor, so that to make it is to copy memory; it is
    page-locked where the tensor is on a GPU.
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._layouts: list[object] = []
        self._held: dict[Place, Tensor] = {}
        self._plain: Groups | None = None

    def take(
        self, files: Mapping[str, Mapping[str, Tensor]], later: Container[str] = ()
    ) -> Callable[[], None]:
        """Copy tensors, by file and name, over the copies from before.

        Args:
            files: The tensors.
            later: Files whose tensors keep still for a while: they are not copied yet.

        Returns:
            What copies those.

        Raises:
            ResourceError: There is no memory for the copies.
        """
        given = {(file, name): value for file in files for name, value in files[file].items()}
        layouts: list[object] = [(p, t.shape, t.dtype, t.stride()) for p, t in given.items()]
        self._files, self._plain = list(files), None
        if layouts != self._layouts:
            self._held, self._layouts = {}, []  # before there is memory for others
            self._held, self._layouts = _rooms(given), layouts
        now = [(self._held[p], t) for p, t in given.items() if p[0] not in later]
        rest = [(self._held[p], t) for p, t in given.items() if p[0] in later]
        _copy(now, min(THREADS, torch.get_num_threads()))
        return partial(_copy, rest, 1)

    def plain(self) -> Groups:
        """Return the copies in row order; they are as they were taken until the next `take`."""
        if self._plain is None:  # once, as values move in the memory they lie in
            self._plain = {file: {} for file in self._files}
            for (file, name), copy in self._held.items():
                self._plain[file][name] = _in_row_order(copy)
        return self._plain


def _rooms(given: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """Return memory for copies of tensors, with their layouts.

    On a CPU all of it is one array of NumPy's, which asks for huge pages.
    """
    try:
        if any(tensor.is_cuda for tensor in given.values()):
            return {p: torch.empty_like(t, device="cpu", pin_memory=True) for p, t in given.items()}
        ends = [*itertools.accumulate(-(-t.nbytes // LINE) * LINE for t in given.values())]
        memory = torch.from_numpy(np.empty([0, *ends][-1], np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise ResourceError(
            "no memory is left to copy what a checkpoint holds: save without copies, with "
            "--set checkpoint.background=false"
        ) from error
    rooms = {}
    for (place, tensor), start in zip(given.items(), [0, *ends], strict=False):
        layout = torch.empty_like(tensor, device="meta").stride()
        own = memory[start : start + tensor.nbytes].view(tensor.dtype)
        rooms[place] = own.as_strided(tensor.shape, layout)
    return rooms


def _copy(pairs: Sequence[tuple[Tensor, Tensor]], threads: int) -> None:
    """Copy tensors, each to a room of its own; every thread takes the next one.

    torch would share out each single tensor and wait for all threads each time: hundreds of times,
    at ten times the price where another process has one of the cores.
    """
    left = iter(pairs)

    @torch.no_grad()
    def work() -> None:
        for room, tensor in left:
            if tensor.is_cpu and room.stride() == tensor.stride():  # without gaps, as rooms are
                ctypes.memmove(room.data_ptr(), tensor.data_ptr(), tensor.nbytes)
            else:
                room.copy_(tensor, non_blocking=True)

    with ThreadPoolExecutor(threads) as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    for device in {tensor.device for _, tensor in pairs if tensor.is_cuda}:
        torch.cuda.synchronize(device)


def _in_row_order(tensor: Tensor) -> Tensor:
    """Bring a copy's values into row order, in the memory they lie in."""
    if tensor.is_contiguous():
        return tensor
    values = tensor.contiguous()
    return tensor.as_strided(values.shape, values.stride()).copy_(values)
