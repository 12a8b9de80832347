"""Batch norms of two processes against torch's own on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from world import WORLD, together

from dira_core.nn.sync_norm import SyncBatchNorm, average_norms, synchronise

CPU = torch.device("cpu")


def rows(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1


def norm_for(x: Tensor, **options: object) -> nn.Sequential:
    """Return a batch norm for (B, C, *S), inside a module, with weights that are no ones."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()]
    norm = kind(x.shape[1], dtype=x.dtype, **options)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(rows(x.shape[1]))
            norm.bias.copy_(rows(x.shape[1]) / 2)
    return nn.Sequential(norm)


def result(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return output, gradients and buffers after two batches, the second one trained on."""
    net(x.flip(0) / 2)
    x = x.clone().requires_grad_()
    out = net(x)
    torch.autograd.backward(
        (out.sin() * torch.arange(x.shape[1]).view(-1, *[1] * (x.dim() - 2))).sum()
    )
    assert x.grad is not None
    found = {"out": out, "gradient": x.grad, **dict(net.named_buffers())}
    return found | {
        f"{k} gradient": p.grad for k, p in net.named_parameters() if p.grad is not None
    }


SHAPES = [(6, 5), (4, 3, 7), (6, 5, 3, 4), (4, 1, 2, 2), (4, 7, 2, 3, 5)]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"momentum": 0.5, "eps": 0.1}, {"affine": False}], ids=str
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_statistics_are_those_of_the_joined_batch(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, object]
) -> None:
    whole = rows(*shape)

    def work(rank: int) -> dict[str, Tensor]:
        net = norm_for(whole, **options)
        synchronise(net, CPU)
        assert isinstance(net[0], SyncBatchNorm)
        # so that both batches of `result` are halves of what one process sees
        return result(net, torch.cat([whole[rank::WORLD]]))

    expected = result(
        norm_for(whole, **options), torch.cat([whole[r::WORLD] for r in range(WORLD)])
    )
    found = together(tmp_path, work)
    for name, value in expected.items():
        if name in ("out", "gradient"):
            both = torch.cat([each[name] for each in found])
        elif name.endswith("gradient"):
            both = torch.stack([each[name] for each in found]).sum(0)
        else:
            assert torch.equal(found[0][name], found[1][name])
            both = found[0][name]
        torch.testing.assert_close(both, value, msg=name)


def test_a_gradient_penalty_through_it_is_that_of_the_joined_batch(tmp_path: Path) -> None:
    whole = rows(8, 5).double()

    def pulls(x: Tensor, shared: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
        if shared:
            synchronise(net, CPU)
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        names, weights = zip(*net.named_parameters(), strict=True)
        found = torch.autograd.grad(penalty, weights, allow_unused=True)
        return {n: pull for n, pull in zip(names, found, strict=True) if pull is not None}

    expected = pulls(whole, False)
    found = together(tmp_path, lambda rank: pulls(whole.chunk(WORLD)[rank], True))
    assert {"0.weight", "1.weight", "3.weight"} <= expected.keys()
    for name, pull in expected.items():
        torch.testing.assert_close(sum(each[name] for each in found) / WORLD, pull, msg=name)


def test_half_precision_comes_back_as_it_came_and_is_measured_in_float32(tmp_path: Path) -> None:
    whole = rows(64, 3, 8, 8).bfloat16()

    def work(rank: int) -> dict[str, Tensor]:
        net = norm_for(whole.float())
        synchronise(net, CPU)
        return {"out": net(whole.chunk(WORLD)[rank]), **dict(net.named_buffers())}

    net = norm_for(whole.float())
    expected = net(whole.float())
    found = together(tmp_path, work)
    out = torch.cat([each["out"] for each in found])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16())
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(found[0][name], buffer)


def test_in_evaluation_and_alone_it_is_torchs_own() -> None:
    x = rows(6, 5, 3, 4)
    own, ours = norm_for(x), norm_for(x)
    synchronise(ours, CPU)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), own.train(mode)(x))
    torch.testing.assert_close(ours.state_dict(), own.state_dict())


def test_parameters_stay_the_same_objects_under_the_same_names() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3)))
    before = dict(net.named_parameters()), [*net.state_dict()]
    synchronise(net, CPU)
    assert ({**dict(net.named_parameters())}, [*net.state_dict()]) == before
    assert isinstance(net[1][0], SyncBatchNorm)


def test_norms_that_are_not_synchronised_end_a_step_with_average_statistics(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
        net(rows(8, 3).float()[rank::WORLD])
        own = {f"own {name}": value.clone() for name, value in net.named_buffers()}
        average_norms(net)
        return own | dict(net.named_buffers())

    found = together(tmp_path, work)
    for name in ("0.running_mean", "0.running_var"):
        mean = torch.stack([each[f"own {name}"] for each in found]).mean(0)
        assert not torch.equal(found[0][f"own {name}"], mean)
        for each in found:
            torch.testing.assert_close(each[name], mean)
