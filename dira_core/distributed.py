"""What the processes of a run know together; in one process, every function is the identity.

Tensors of a loss travel by `gather_rows` and `sum_over_processes`, which autograd sees. What the
engine itself agrees on travels as JSON, never pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dira_core.errors import DiraError
from dira_core.order import in_order

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torch's launcher puts into the environment of every process."""

Json = TypeVar("Json")


def rank() -> int:
    """Return the number of this process among those of the run; the first is 0."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if together() else 1


def local_rank() -> int:
    """Return the number of this process among those on its machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if together() else 0


def together() -> bool:
    """Say whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def launched() -> bool:
    """Say whether torch's launcher (torchrun, `dira run --nproc`) started this process.

    Raises:
        DiraError: Others take part, and the environment does not say how to meet them. Alone, each
            of them would train the whole run.
    """
    known = {name: os.environ.get(name, "") for name in LAUNCHED}
    wrong = [k for k, v in known.items() if not (v if k == "MASTER_ADDR" else v.isdecimal())]
    if wrong and known["WORLD_SIZE"] not in ("", "1"):
        raise DiraError(
            f"WORLD_SIZE is {known['WORLD_SIZE']}, and {', '.join(wrong)} in the environment of "
            "this process is missing or no number: start it with torchrun or --nproc, or unset "
            "WORLD_SIZE to train alone"
        )
    return not wrong


def gather_rows(tensor: Tensor, *, same_loss: bool = False) -> Tensor:
    """Join the rows of all processes, in the order of their ranks: (B, ...) -> (world * B, ...).

    The gradient is exact: rows get what the losses of all processes ask of them, added up. With a
    loss of the gathered rows on each process, averaging the parameters' gradients (DDP) gives the
    gradient of one process that holds the whole batch.

    Args:
        tensor: Equally many rows on every process.
        same_loss: Say that every process computes one and the same loss of the rows. Then all ask
            the same of them, and the gradient is known without another exchange.
    """
    return tensor if world_size() == 1 else cast(Tensor, _Gather.apply(tensor, same_loss))


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes; so is its gradient."""
    return tensor if world_size() == 1 else cast(Tensor, _Sum.apply(tensor, "sum_over_processes"))


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their averages over all processes, in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    in_order("average", flat)
    dist.all_reduce(flat)
    pieces = torch.split(flat / world_size(), [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def highest(*values: float) -> list[float]:
    """Return the largest of each value over all processes."""
    if world_size() == 1:
        return list(values)
    everyone = torch.tensor(values, dtype=torch.float64)
    in_order("highest", everyone)
    dist.all_reduce(everyone, dist.ReduceOp.MAX)
    return everyone.tolist()


def gathered(value: Json) -> list[Json]:
    """Return a JSON value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = gather_rows(torch.tensor([len(data)])).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(data)] = data
    rows = gather_rows(padded[None])
    return [json.loads(bytes(row[:n].tolist())) for row, n in zip(rows, lengths, strict=True)]


def from_first(value: Json) -> Json:
    """Return the first process's JSON value."""
    return gathered(value)[0]


def barrier() -> None:
    """Wait until every process is here."""
    highest(0)


_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""Its name since torch 2.14, or the one before."""


class _Gather(torch.autograd.Function):
    """All-gather, whose gradient is the rank's part of an all-reduce."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, same_loss: bool) -> Tensor:
        ctx.same_loss = same_loss
        everyone = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
        in_order("gather_rows", tensor)
        _all_gather(everyone, tensor.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        n = dist.get_world_size()
        if ctx.same_loss:
            return n * gradients[0].chunk(n)[dist.get_rank()], None
        total = _Sum.apply(gradients[0], "gradient of gather_rows")
        return total.chunk(n)[dist.get_rank()], None


class _Sum(torch.autograd.Function):
    """All-reduce, whose gradient is the all-reduce of the gradients, to any order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, what: str) -> Tensor:
        ctx.what = what
        total = tensor.clone(memory_format=torch.contiguous_format)
        in_order(what, total)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], f"gradient of {ctx.what}"), None
