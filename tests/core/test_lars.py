"""LARS against its formula in a plain loop, timm's where both agree, and torch's SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dira_core.lars import LARS, trust_ratios

LR, MOMENTUM, TRUST = 0.3, 0.9, 0.01


def weights() -> list[nn.Parameter]:
    """Two kernels of very different size, one that is all zero, and a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (2, 3, 3, 3), (3, 2), (5,)]
    scales = [1.0, 1e3, 0.0, 1.0]
    return [
        nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def gradients(step: int, like: list[nn.Parameter]) -> list[Tensor]:
    """The first kernel's gradient is zero at step 1; the zero kernel's at step 0."""
    generator = torch.Generator().manual_seed(100 + step)
    found = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in like]
    if step in (0, 1):
        found[2 - 2 * step].zero_()
    return found


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def groups(parameters: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": parameters[3:], "adapt": False}, {"params": parameters[:3]}]


def close(found: list[nn.Parameter], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_every_step_is_the_published_formula(decay: float) -> None:
    parameters = weights()
    optimizer = LARS(groups(parameters), LR, MOMENTUM, decay, TRUST)
    expected = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in expected]
    for step in range(5):
        train(optimizer, parameters, range(step, step + 1))
        for p, mu, g in zip(expected, momenta, gradients(step, parameters), strict=True):
            update = g
            if p.dim() > 1:
                update = g + decay * p
                w, u = p.square().sum().sqrt(), update.square().sum().sqrt()
                update = update * (TRUST * w / u if w > 0 and u > 0 else 1.0)
            mu.copy_(MOMENTUM * mu + update)
            p -= LR * mu
        close(parameters, expected)


def test_without_decay_it_is_timms() -> None:
    timm = pytest.importorskip("timm.optim")
    parameters, others = weights(), weights()
    train(LARS(parameters, LR, MOMENTUM, 0.0, TRUST), parameters, range(5))
    options = {"trust_coeff": TRUST, "eps": 0.0, "always_adapt": True}
    train(timm.Lars(others, LR, MOMENTUM, **options), others, range(5))
    close(parameters, others)


@pytest.mark.parametrize("library", ["timm", "lightly"])
def test_where_gradient_and_weight_are_parallel_it_is_everyone_elses(library: str) -> None:
    """Then the norm of the sum is the sum of the norms, of which the others take the one."""
    if library == "timm":
        rule, name = pytest.importorskip("timm.optim").Lars, "trust_coeff"
    else:
        rule, name = pytest.importorskip("lightly.utils.lars").LARS, "trust_coefficient"
    parameters, others = weights()[:2], weights()[:2]
    ours = LARS(parameters, LR, MOMENTUM, 0.1, TRUST)
    theirs = rule(others, lr=LR, momentum=MOMENTUM, weight_decay=0.1, eps=0.0, **{name: TRUST})
    for _ in range(4):
        for p in [*parameters, *others]:
            p.grad = 3 * p.detach()
        ours.step()
        theirs.step()
    close(parameters, others)


def test_a_group_that_does_not_adapt_is_plain_sgd_without_decay() -> None:
    parameters, others = weights(), weights()
    unadapted: list[dict[str, object]] = [{"params": parameters, "adapt": False}]
    train(LARS(unadapted, LR, MOMENTUM, 0.1, TRUST), parameters, range(4))
    train(torch.optim.SGD(others, LR, MOMENTUM), others, range(4))
    close(parameters, others)


def test_an_update_does_not_depend_on_the_size_of_the_gradient() -> None:
    steps = []
    for scale in (1.0, 1e4):
        (weight, *_) = weights()
        before = weight.detach().clone()
        weight.grad = scale * gradients(3, [weight])[0]
        LARS([weight], 1.0, 0.0, 0.0, TRUST).step()
        steps.append(before - weight.detach())
        assert steps[-1].norm() / before.norm() == pytest.approx(TRUST)
    torch.testing.assert_close(steps[0], steps[1])


def test_the_ratio_is_one_where_a_norm_is_zero() -> None:
    zero, two = torch.zeros(3, 3), torch.full((1, 4), 2.0)
    found = trust_ratios([zero, two, zero, two], [two, zero, zero, two / 8], 0.5)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1.0, 4.0]))


def test_what_has_no_gradient_is_left_alone() -> None:
    moved, still = weights()[:2]
    optimizer = LARS([{"params": [moved, still]}, {"params": weights()[3:]}], LR)
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    optimizer.step()
    assert torch.equal(still, before)
    assert list(optimizer.state) == [moved]


def test_a_step_reads_no_value_so_it_never_waits_for_a_device() -> None:
    """On tensors without data, any look at a value is an error."""
    kernel, bias = (nn.Parameter(torch.empty(s, device="meta")) for s in ((3, 4), (4,)))
    kernel.grad, bias.grad = torch.empty_like(kernel), torch.empty_like(bias)
    optimizer = LARS([{"params": [bias], "adapt": False}, {"params": [kernel]}], LR, 0.9, 0.1)
    optimizer.step()
    assert optimizer.state[kernel]["momentum_buffer"].is_meta


def test_a_closure_computes_the_loss_and_the_gradients() -> None:
    (weight, *_) = weights()

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    before = weight.detach().clone()
    assert LARS([weight], LR).step(closure) == before.square().sum().item()
    assert not torch.equal(before, weight)


def test_a_state_dict_goes_on_bit_for_bit() -> None:
    parameters = weights()
    optimizer = LARS(groups(parameters), LR, MOMENTUM, 0.1, TRUST)
    train(optimizer, parameters, range(3))
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = LARS(groups(others), 1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, parameters, range(3, 6))
    train(resumed, others, range(3, 6))
    for mine, other in zip(parameters, others, strict=True):
        assert torch.equal(mine, other)
