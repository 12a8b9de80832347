"""A guard for debugging: do all processes call the same collectives in the same order?

Two sums in swapped order are no error to gloo or NCCL, they give wrong numbers. With the
environment variable DIRA_CHECK_ORDER (seconds to wait for the others, for example 30) every
collective of the engine first compares by the launcher's store what each process is about to do.
"""

from __future__ import annotations

import functools
import os
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined] # they are public all the same
    PrefixStore,
    Store,
)

from dira_core.errors import PluginError

SWITCH = "DIRA_CHECK_ORDER"


class Order:
    """What this process has called so far, by number.

    Args:
        store: All processes reach it.
        rank: Of this process.
        processes: How many there are.
        wait_s: Seconds to wait for the others.
    """

    def __init__(self, store: Store, rank: int, processes: int, wait_s: float) -> None:
        self._store = PrefixStore("order", store)
        self._rank = rank
        self._processes = processes
        self._wait = timedelta(seconds=wait_s)
        self._number = 0

    def meet(self, call: str) -> None:
        """Wait until every process is about to do the same.

        Args:
            call: Names the collective, the tensor and the line.

        Raises:
            PluginError: One of them does something else, or nothing.
        """
        self._store.set(f"{self._number}-{self._rank}", call)
        calls = [self._call_of(rank, call) for rank in range(self._processes)]
        if len(set(calls)) > 1:
            found = "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(calls))
            raise PluginError(
                f"collective {self._number} differs between processes ({found}): each must call "
                "the same ones in the same order, whatever its data are"
            )
        self._number += 1

    def _call_of(self, rank: int, mine: str) -> str:
        key = f"{self._number}-{rank}"
        try:
            self._store.wait([key], self._wait)
        except RuntimeError as error:  # of what kind depends on the store
            raise PluginError(
                f"rank {rank} does not come to collective {self._number}, {mine} on rank "
                f"{self._rank}: each process must call the same ones in the same order"
            ) from error
        return self._store.get(key).decode()


def in_order(name: str, tensor: Tensor) -> None:
    """Compare a collective that is about to be called, if the environment asks for it."""
    if (order := _asked()) is not None:
        order.meet(f"{name} of {tuple(tensor.shape)} {tensor.dtype} at {_caller()}")


@functools.cache
def _asked() -> Order | None:
    wait = os.environ.get(SWITCH)
    if not wait:
        return None
    store = dist.distributed_c10d._get_default_store()
    return Order(store, dist.get_rank(), dist.get_world_size(), float(wait))


def _caller() -> str:
    """Return the innermost line that is neither here nor in the module of the collectives."""
    own = {__file__, str(Path(__file__).with_name("distributed.py"))}
    lines = [frame for frame in traceback.extract_stack() if frame.filename not in own]
    return f"{Path(lines[-1].filename).name}:{lines[-1].lineno}"
