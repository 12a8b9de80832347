"""Joining the other processes of a run, and what to say when one of them is lost."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined] # they are public all the same
    PrefixStore,
    Store,
)
from torch.distributed.rendezvous import rendezvous

from dira_core.distributed import launched, rank, together, world_size
from dira_core.errors import DiraError, PeerError, ResourceError, error_of

ROLL_CALL_S = 3
"""Seconds the others have to answer when one of them seems lost."""

POLL_S = 0.02
"""Seconds between two looks at who has come."""

WORD = "last-word"
"""Key of the launcher's store under which the first process to fail says why."""

Where = Callable[[], str]
"""Says where this process stands, for example "step 12"."""


def starting() -> str:
    """Say where a process stands before its first step."""
    return "the start"


@contextmanager
def joined(timeout_s: float, where: Where = starting) -> Iterator[None]:
    """Join the processes of a launcher while the context lasts, if there is one.

    CPU tensors travel by gloo, CUDA tensors by NCCL. Of processes that are joined already, only
    errors are looked after: what ends one of them ends all for the same reason.

    Args:
        timeout_s: How long a process waits for the others in a step.
        where: This process stands.

    Raises:
        PeerError: A process died, or did not answer in time.
        DiraError: What another process failed with, as its own error.
    """
    if together() or not launched():
        with peers_named(where):
            yield
        return
    _meet(timeout_s)
    try:
        with peers_named(where):
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def peers_named(where: Where) -> Iterator[None]:
    """Turn the loss of contact with another process into an error that says which, and why.

    What this process fails with is left for the others to read.

    Args:
        where: This process stands.

    Raises:
        PeerError: A process died, or did not answer in time.
        DiraError: What another process failed with.
    """
    try:
        yield
    except DiraError as error:
        _leave_word(error.exit_code, str(error))
        raise
    except Exception as error:
        if lost_contact(error):
            raise _reason(where()) from error
        text = f"failed at {where()} ({type(error).__name__}: {error}): see its traceback"
        _leave_word(PeerError.exit_code, text)
        raise


def lost_contact(error: Exception) -> bool:
    """Say whether an error is about another process that does not answer."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )


def _meet(timeout_s: float) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        own, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= gpus:
            raise ResourceError(
                f"process {own + 1} of this machine finds {gpus} GPUs, and each takes one: use "
                f"--nproc {gpus}, or hide them with CUDA_VISIBLE_DEVICES= to compute on the CPU"
            )
        torch.cuda.set_device(own)
    backend, wait = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=timeout_s)
    try:
        store, number, processes = next(rendezvous("env://", timeout=wait))
        new = fresh(store, number, processes, timeout_s)
        dist.init_process_group(backend, store=new, rank=number, world_size=processes, timeout=wait)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PeerError(
            f"rank {os.environ['RANK']} did not meet all other processes at {place} within "
            f"{timeout_s:g} s (train.timeout_s): see that they were started and reach that address"
        ) from error


def fresh(store: Store, number: int, processes: int, timeout_s: float) -> Store:
    """Return a part of a launcher's store that only the processes started together know.

    torch's launcher keeps one store for all its restarts. A process that finds there where one of
    those before it could be reached would wait for a dead one.

    Args:
        store: All processes of the launcher reach it.
        number: Rank of this process.
        processes: Started together.
        timeout_s: How long to wait for the others.

    Raises:
        RuntimeError: They did not come in time.
    """
    name, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    if number > 0:
        store.set(f"hello-{number}", name)
        store.wait([f"answer-{name}"], timedelta(seconds=timeout_s))
        answer = store.get(f"answer-{name}").decode()
        store.set(f"met-{answer}-{number}", "")
        return PrefixStore(answer, store)
    missing, answered = set(range(1, processes)), set()
    while missing := {n for n in missing if not store.check([f"met-{name}-{n}"])}:
        for other in (n for n in missing if store.check([f"hello-{n}"])):
            who = store.get(f"hello-{other}").decode()  # perhaps of one that is dead
            if who not in answered:
                store.set(f"answer-{who}", name)
                answered.add(who)
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(missing)} did not come")
        time.sleep(POLL_S)
    return PrefixStore(name, store)


def _leave_word(code: int, message: str) -> None:
    """Say why this process fails, unless another did before."""
    if world_size() == 1:
        return
    try:
        if not (store := _store()).check([WORD]):
            who = f"rank {rank()}"
            store.set(WORD, json.dumps([code, message if who in message else f"{who}: {message}"]))
    except RuntimeError:  # the launcher is gone
        return


def _reason(place: str) -> DiraError:
    """Return what another process failed with, or who does not answer."""
    try:
        if (store := _store()).check([WORD]):
            code, message = json.loads(store.get(WORD))
            return error_of(code, message)
        lost = f"rank {', '.join(map(str, _absent())) or 'unknown'}"
    except RuntimeError:
        lost = "the process that keeps the launcher's store"
    return PeerError(
        f"{lost} died or hangs at {place}, rank {rank()} has waited for it: see what it "
        "said and whether its machine is well, then continue with --resume"
    )


def _absent() -> list[int]:
    """Return the processes that do not answer a roll call."""
    store = PrefixStore("roll-call", _store())
    store.set(str(rank()), "here")
    absent, deadline = set(range(world_size())), time.monotonic() + ROLL_CALL_S
    while absent := {number for number in absent if not store.check([str(number)])}:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)  # a wait of torch's that ends in vain writes to stderr
    return sorted(absent)


def _store() -> Store:
    """Return what all processes of a launcher can read and write."""
    return dist.distributed_c10d._get_default_store()
