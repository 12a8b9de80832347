"""The U-Net critic: its published size, and WGAN-GP against closed forms and finite differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from world import WORLD, together

import dira_patchgan
import dira_unetcritic
from dira_core import Adversary, Batch, Draws, Progress, RecipeError, View, gradient_penalty
from dira_core.optimizer_options import Optimizer
from dira_core.parallel import Replicated, Sharded, Wrapped, wrapped
from dira_core.players import CriticPlayer, Turn
from dira_core.plugins import make
from dira_core.testing import choice


def build(channels: int = 1, dims: int = 3, **options: Any) -> Adversary:
    (component,) = dira_unetcritic.dira_adversaries()
    torch.manual_seed(0)
    module: Adversary = component.build(component.options(**options), channels, dims)
    return module


def small(**options: Any) -> Adversary:
    return build(**{"width": 2, "levels": 2, **options})


def volumes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def shares(real: Tensor) -> Tensor:
    """Where on the lines between real and restored images the penalty looks."""
    bits = real.float().view(torch.int32).flatten(1).long().sum(1)
    return Draws(bits, seed=0, path="gradient penalty").uniform("share").double()


@pytest.mark.parametrize("conditional", [False, True])
def test_the_default_has_the_published_layers(conditional: bool) -> None:
    critic = build(conditional=conditional, norm="batch")
    inputs = 2 if conditional else 1
    pairs = [
        (inputs, 32),
        (32, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 512),
    ]
    convs = [m for m in critic.modules() if isinstance(m, nn.Conv3d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [*pairs, (512, 1)]
    assert [m.kernel_size[0] for m in convs] == [3] * 8 + [1]
    volume = torch.zeros(1, 1, 32, 64, 64, device="meta")
    assert critic.to("meta")(volume, volume).shape == (1, 1, 4, 8, 8)


@pytest.mark.parametrize(("dims", "size"), [(2, (24, 17)), (3, (9, 16, 8))])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_every_norm_scores_images_and_volumes(dims: int, size: tuple[int, ...], norm: str) -> None:
    critic = small(dims=dims, norm=norm)
    scores = critic(torch.rand(3, 1, *size))
    assert scores.shape == (3, 1, *(math.ceil(side / 2) for side in size))
    assert scores.std() > 0


def test_the_losses_are_those_of_gulrajani() -> None:
    real, fake = volumes(3, 1, 2, 2), volumes(3, 1, 2, 2, seed=1)
    critic = small()
    assert critic.critic_loss(real, fake).item() == pytest.approx(
        (fake.mean() - real.mean()).item()
    )
    assert critic.generator_loss(fake).item() == pytest.approx(-fake.mean().item())


def test_the_penalty_of_a_linear_critic_and_its_gradient_are_the_closed_form() -> None:
    weight = volumes(12, seed=3).requires_grad_()
    real, fake = volumes(5, 1, 3, 4), volumes(5, 1, 3, 4, seed=1)
    # two scores an image, whose mean is w x / 2
    penalty = gradient_penalty(
        lambda x: torch.stack([x.flatten(1) @ weight, torch.zeros(len(x))], 1), real, fake
    )
    (gradient,) = torch.autograd.grad(penalty, weight)
    length = weight.detach().norm() / 2
    assert penalty.item() == pytest.approx(((length - 1) ** 2).item())
    expected = 2 * (length - 1) * weight.detach() / (4 * length)
    torch.testing.assert_close(gradient, expected)


def test_the_penalty_looks_between_real_and_restored_images() -> None:
    real, fake = volumes(6, 2, 4, 4), volumes(6, 2, 4, 4, seed=1)
    share = shares(real)
    assert len(share.unique()) == 6
    points = real + share.view(-1, 1, 1, 1) * (fake - real)
    penalty = gradient_penalty(lambda x: 0.5 * x.square().flatten(1).sum(1)[:, None], real, fake)
    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    assert penalty.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(
    conditional: bool, norm: str
) -> None:
    critic = small(conditional=conditional, norm=norm, penalty=10).double()
    real, fake, given = (volumes(2, 1, 6, 5, 4, seed=seed) for seed in range(3))
    condition = given if conditional else None
    name = "levels.0.0.0.weight"
    weight = critic.get_parameter(name).detach().requires_grad_()
    (component,) = torch.autograd.grad(
        critic.penalty(real, fake, condition), critic.get_parameter(name)
    )  # type: ignore[type-var]
    direction = volumes(*weight.shape, seed=9) - 0.5

    def at(step: float) -> float:
        moved = {name: weight.detach() + step * direction}
        slope = gradient_penalty(
            lambda x: functional_call(critic, moved, (x, condition)), real, fake
        )
        return 10 * slope.item()

    numeric = (at(1e-6) - at(-1e-6)) / 2e-6
    assert (component * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_the_condition_is_seen_and_a_weight_of_zero_asks_for_nothing() -> None:
    real, fake, one, other = torch.rand(4, 2, 1, 8, 8, 8)
    critic = small(conditional=True)
    first, second = critic.penalty(real, fake, one), critic.penalty(real, fake, other)
    assert first is not None
    assert second is not None
    assert first.dtype == torch.float32
    assert first != second
    assert small(penalty=0).penalty(real, fake, None) is None


def test_the_penalty_stays_in_float32_under_autocast() -> None:
    real, fake = torch.rand(2, 2, 1, 8, 8, 8)
    critic = small()
    alone = critic.penalty(real, fake, None)
    with torch.autocast("cpu", torch.bfloat16):
        under = critic.penalty(real, fake, None)
    torch.testing.assert_close(under, alone, rtol=0, atol=0)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    real, fake = (volumes(4, 1, 6, 6, 6, seed=seed).float() for seed in range(2))

    def gradients(critic: nn.Module, called: nn.Module, some: slice) -> dict[str, Tensor]:
        assert isinstance(critic, Adversary)
        judged = called(fake[some], None)
        loss = critic.critic_loss(called(real[some], None), judged)
        penalty = critic.penalty(real[some], fake[some], None)
        assert penalty is not None
        torch.autograd.backward(loss + penalty, inputs=list(critic.parameters()))
        return {n: p.grad for n, p in critic.named_parameters() if p.grad is not None}

    def work(rank: int) -> dict[str, Tensor]:
        share = wrapped(small(), Replicated())
        return gradients(share.module, share.called, slice(2 * rank, 2 * rank + 2))

    critic = small()
    expected = gradients(critic, critic, slice(4))
    assert WORLD == 2
    for found in together(tmp_path, work):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_penalty_on_sharded_weights_is_refused_with_the_way_out() -> None:
    critic = small()
    player = CriticPlayer(Wrapped(critic, critic, Sharded()), torch.optim.Adam(critic.parameters()))
    crop = torch.rand(2, 1, 8, 8, 8)
    batch = Batch((View(crop, crop, torch.zeros(2, 3, 2)),), torch.arange(2))
    turn = Turn(batch, Progress(0, 1, 0, 1), restored=crop, fake_scores=critic(crop))
    with pytest.raises(RecipeError, match="train.strategy=ddp"):
        player.losses(turn)


def test_the_critic_learns_to_tell_bright_from_dark_and_keeps_its_slope() -> None:
    critic = small(dims=2, norm="none", width=4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.9))
    gaps = []
    for step in range(60):
        torch.manual_seed(step)
        dark, bright = 0.5 * torch.rand(2, 4, 1, 16, 16)
        real, fake = bright + 0.5, dark
        gap = critic.critic_loss(critic(real), critic(fake))
        penalty = critic.penalty(real, fake, None)
        assert penalty is not None
        optimizer.zero_grad()
        torch.autograd.backward(gap + penalty)
        optimizer.step()
        gaps.append(gap.item())
    # the best critic of slope 1 scores them 0.5 apart for each of 16 x 16 pixels: 8 in all
    assert -12 < gaps[-1] < -4
    assert penalty < 2


def test_patchgan_has_the_same_losses_and_penalty() -> None:
    real, fake = torch.rand(2, 2, 1, 16, 16)
    options = choice("adversary", "patchgan", widths=[4, 4], loss="wgan-gp", penalty=7)
    critic: Adversary = make("adversary", options, 1, 2)
    expected = 7 * gradient_penalty(critic, real, fake)
    torch.testing.assert_close(critic.penalty(real, fake, None), expected)
    assert critic.generator_loss(fake) == -fake.mean()
    (component,) = dira_patchgan.dira_adversaries()
    assert component.build(component.options(widths=[4]), 1, 2).penalty(real, fake, None) is None


def test_a_crop_that_ends_in_a_single_pixel_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"at least 9 px, got \(8, 8, 8\): raise views.size"):
        build(width=1)(torch.rand(2, 1, 8, 8, 8))
    assert build(width=1, norm="none")(torch.rand(2, 1, 8, 8, 8)).shape == (2, 1, 1, 1, 1)


def test_the_default_optimizer_is_that_of_gulrajani() -> None:
    (component,) = dira_unetcritic.dira_adversaries()
    optimizer = Optimizer(**component.defaults["critic_optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adam", 1e-4, (0.5, 0.9))
