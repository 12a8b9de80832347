"""Segments that forget what they computed give the same bits, and are measured once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from dira_core import Backbone, Restorer
from dira_core.health import gradient_report
from dira_core.nn.recompute import recompute
from dira_core.nn.resnet import ResNet
from dira_core.plugins import make
from dira_core.testing import choice

Networks = tuple[Backbone, Restorer]


def networks() -> Networks:
    torch.manual_seed(0)
    backbone = ResNet(18, 1, zero_init_residual=False)
    chosen = choice("restorer", "unet", widths=[8, 8, 8, 8, 8])
    return backbone, make("restorer", chosen, backbone)


def forgetful() -> Networks:
    backbone, restorer = networks()
    recompute([*backbone.segments(), *restorer.segments()])
    return backbone, restorer


def images() -> Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def result(parts: Networks, *, bf16: bool) -> dict[str, Tensor]:
    """Return the restored images, all gradients, and all weights and buffers."""
    backbone, restorer = parts
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        restored = restorer(backbone(images()))
    torch.autograd.backward(restored.square().mean())
    modules = nn.ModuleList(parts)
    found = {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}
    return {
        "restored": restored,
        **found,
        **{f"state {k}": v for k, v in modules.state_dict().items()},
    }


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_weights_and_running_statistics_keep_their_bits(bf16: bool) -> None:
    expected, found = result(networks(), bf16=bf16), result(forgetful(), bf16=bf16)
    assert expected.keys() == found.keys()
    assert len(expected) > 200
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_in_evaluation_gradients_are_those_with_running_statistics() -> None:
    expected, found = (
        result((a.eval(), b.eval()), bf16=False) for a, b in (networks(), forgetful())
    )
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_gradients_of_single_objectives_keep_their_bits_one_after_the_other() -> None:
    def measured(parts: Networks) -> dict[str, Tensor]:
        backbone, restorer = parts
        restored = restorer(backbone(images()))
        terms = {"a": restored.mean(), "b": restored.square().mean()}
        report = gradient_report(terms, [*backbone.parameters()])
        torch.autograd.backward(torch.stack([*terms.values()]).sum())
        grads = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        return {**report, **grads, **{f"state {k}": v for k, v in backbone.state_dict().items()}}

    expected, found = measured(networks()), measured(forgetful())
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


class Witness(nn.Module):
    """A layer with dropout that knows whether what it computed is still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear(x).relu()
        self.seen.append(weakref.ref(inner))
        return nn.functional.dropout(inner * inner, 0.5)


@contextmanager
def witness(change: Callable[[list[nn.Module]], None]) -> Iterator[Witness]:
    torch.manual_seed(0)
    part = Witness()
    change([part])
    torch.manual_seed(1)
    yield part


def test_what_is_inside_a_segment_is_forgotten_until_the_backward_pass() -> None:
    def alive(change: Callable[[list[nn.Module]], None]) -> bool:
        with witness(change) as part:
            out = part(torch.ones(2, 4))
            kept = part.seen[0]() is not None
            del out
            return kept

    assert alive(lambda parts: None)
    assert not alive(recompute)


def test_dropout_draws_the_same_twice() -> None:
    def gradient(change: Callable[[list[nn.Module]], None]) -> Tensor:
        with witness(change) as part:
            torch.autograd.backward(part(torch.ones(2, 4)).sum())
            assert part.linear.weight.grad is not None
            return part.linear.weight.grad

    assert torch.equal(gradient(lambda parts: None), gradient(recompute))


def test_without_gradients_nothing_is_computed_again() -> None:
    with witness(recompute) as part, torch.no_grad():
        part(torch.ones(2, 4))
    assert len(part.seen) == 1
