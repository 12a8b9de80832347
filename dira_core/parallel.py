"""How the processes of a run share one module: alone, replicated, or in shards."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel

from dira_core.distributed import local_rank, world_size
from dira_core.roles import Backbone, Restorer

Module = TypeVar("Module", bound=nn.Module)


class Strategy(ABC):
    """How one module is trained by all processes."""

    @abstractmethod
    def wrap(self, module: nn.Module) -> nn.Module:
        """Return what to call instead of the module; its gradients are averages over processes."""

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which gradients are added up, and not averaged yet."""
        return nullcontext()

    def changing(self) -> AbstractContextManager[object]:
        """Return a context in which weights may be changed by ordinary tensors."""
        return nullcontext()

    def measurable(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return those of the parameters at which gradients of single objectives can be taken."""
        return parameters

    def whole(self, module: Module) -> Module:
        """Return the module with all of its weights, to evaluate and to export."""
        return module


class Alone(Strategy):
    """One process has the module to itself."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module."""
        return module


class Replicated(Strategy):
    """Every process holds the module; gradients are averaged while they are computed (DDP)."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module in torch's wrapper."""
        cuda = next(module.parameters()).device.type == "cuda"
        with warnings.catch_warnings():
            # torch 2.14 has a new name for it, torch 2.10 does not know that
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            return DistributedDataParallel(
                module,
                device_ids=[local_rank()] if cuda else None,
                broadcast_buffers=False,  # `average_norms` keeps them equal, in one message a step
                gradient_as_bucket_view=True,
            )

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        """Leave gradients where they are."""
        assert isinstance(wrapped, DistributedDataParallel)
        with wrapped.no_sync():
            yield


class Sharded(Strategy):
    """Weights, gradients and optimizer states are spread over the processes (FSDP2).

    Backbones and decoders, a teacher's copies too, are gathered segment by segment while they
    compute.
    """

    def wrap(self, module: nn.Module) -> nn.Module:
        """Shard the module in place."""
        self._hollow = copy.deepcopy(module).to("meta")
        for part in list(module.modules()):
            if isinstance(part, Backbone | Restorer):
                for segment in part.segments():
                    fully_shard(segment)
                fully_shard(part)
        fully_shard(module)
        return module

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        """Keep gradients whole for as long."""
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)

    def changing(self) -> AbstractContextManager[object]:
        """Return a context in which ordinary tensors stand for replicated ones."""
        return implicit_replication()

    def measurable(self, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return none: what computes is gathered for a while, and is not the parameters."""
        return ()

    def whole(self, module: Module) -> Module:
        """Return a copy with the weights of all processes."""
        tensors = {name: entire(value) for name, value in module.state_dict().items()}
        found = cast(Module, copy.deepcopy(self._hollow))
        found.load_state_dict(tensors, assign=True)
        found.train(module.training)
        return found


@dataclass(frozen=True)
class Wrapped(Generic[Module]):
    """A module that holds the weights, what to call in its place, and how processes share it."""

    module: Module
    called: nn.Module
    strategy: Strategy


def wrapped(module: Module, strategy: Strategy) -> Wrapped[Module]:
    """Let a strategy wrap a module; before its optimizer is built, as weights may be replaced."""
    return Wrapped(module, strategy.wrap(module), strategy)


def entire(tensor: Tensor) -> Tensor:
    """Return a tensor with the shards of all processes; an ordinary tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def chosen_strategy(name: str) -> Strategy:
    """Return the strategy of a recipe's `train.strategy`, as many processes as there are."""
    if world_size() == 1:
        return Alone()
    return {"ddp": Replicated, "fsdp": Sharded}[name]()
