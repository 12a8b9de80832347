"""How two processes share a module: averaged gradients, shards, and the whole of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from world import WORLD, together

from dira_core.optim import build_optimizer
from dira_core.optimizer_options import Optimizer
from dira_core.parallel import (
    Alone,
    Replicated,
    Sharded,
    Strategy,
    chosen_strategy,
    entire,
    wrapped,
)

STRATEGIES: list[Callable[[], Strategy]] = [Replicated, Sharded]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, called: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.autograd.backward(called(x).square().mean())
    return {name: entire(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def test_a_process_of_its_own_needs_no_wrapper() -> None:
    strategy, net = chosen_strategy("fsdp"), network()
    assert isinstance(strategy, Alone)
    share = wrapped(net, strategy)
    assert share.module is share.called is net
    assert strategy.whole(net) is net
    assert entire(net[0].weight) is net[0].weight


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_several_processes_get_the_strategy_by_its_name(tmp_path: Path, name: str) -> None:
    kinds = {"ddp": Replicated, "fsdp": Sharded}

    def work(rank: int) -> dict[str, Tensor]:
        return {"right": torch.tensor(type(chosen_strategy(name)) is kinds[name])}

    assert all(found["right"] for found in together(tmp_path, work))


@pytest.mark.parametrize("make", STRATEGIES)
def test_gradients_are_those_of_one_process_that_holds_all_rows(
    tmp_path: Path, make: Callable[[], Strategy]
) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        share = wrapped(network(), make())
        return gradients(share.module, share.called, rows().chunk(WORLD)[rank])

    net = network()
    expected = gradients(net, net, rows())
    for found in together(tmp_path, work):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", STRATEGIES)
def test_gradients_of_micro_batches_are_exchanged_with_those_of_the_last(
    tmp_path: Path, make: Callable[[], Strategy]
) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        share = wrapped(network(), make())
        pieces = rows().chunk(WORLD)[rank].chunk(2)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            within = nullcontext() if last else share.strategy.accumulating(share.called)
            with within:
                torch.autograd.backward(share.called(piece).square().mean() / len(pieces))
            if not last and isinstance(share.strategy, Replicated):
                held = {f"early {n}": p.grad.clone() for n, p in share.module.named_parameters()}
        grads = {name: entire(p.grad) for name, p in share.module.named_parameters()}
        return grads | (held if isinstance(share.strategy, Replicated) else {})

    net = network()
    expected = gradients(net, net, rows())
    both = together(tmp_path, work)
    for found in both:
        torch.testing.assert_close({name: found[name] for name in expected}, expected)
    for name in expected if make is Replicated else []:
        assert not torch.equal(both[0][f"early {name}"], both[1][f"early {name}"])


def test_shards_are_parts_and_the_whole_is_a_copy_of_all(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        net = network().eval()
        strategy = Sharded()
        share = wrapped(net, strategy)
        weight = net[0].weight
        assert isinstance(weight, DTensor)
        whole = strategy.whole(share.module)
        assert not whole.training
        assert not any(isinstance(p, DTensor) for p in whole.parameters())
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(1)
        again = strategy.whole(share.module).state_dict()
        return {"rows here": torch.tensor(len(weight.to_local())), **again}

    expected = network().state_dict()
    both = together(tmp_path, work)
    assert sum(int(found.pop("rows here")) for found in both) == 5
    for found in both:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_replica_is_whole_and_measurable_and_shards_are_not_measured(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        net = network()
        strategy = Replicated()
        assert strategy.whole(wrapped(net, strategy).module) is net
        parameters = [*net.parameters()]
        assert strategy.measurable(parameters) is parameters
        assert [*Sharded().measurable(parameters)] == []
        return {}

    together(tmp_path, work)


def test_sharded_weights_may_be_moved_by_ordinary_tensors_while_changing(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        strategy = Sharded()
        net = wrapped(network(), strategy).module
        with torch.no_grad(), strategy.changing():
            net[0].weight.mul_(torch.full((), 0.5))
        return {"weight": entire(net[0].weight)}

    for found in together(tmp_path, work):
        assert torch.equal(found["weight"], network()[0].weight * 0.5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_every_rule_moves_shards_as_it_moves_the_whole(tmp_path: Path, name: str) -> None:
    options = Optimizer(name=name, lr=0.1, lr_batch=None)

    def trained(strategy: Strategy) -> dict[str, Tensor]:
        share = wrapped(network(), strategy)
        optimizer = build_optimizer([{"params": share.module.parameters()}], options, 1)
        for _ in range(3):
            optimizer.zero_grad()
            gradients(share.module, share.called, rows())
            optimizer.step()
        return strategy.whole(share.module).state_dict()

    alone = trained(Alone())
    for found in together(tmp_path, lambda rank: trained(Sharded())):
        for key, expected in alone.items():
            torch.testing.assert_close(found[key], expected)
