"""PatchGAN against the same network made of torch's own layers, and its published count."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dira_patchgan
from dira_core import Adversary, RecipeError
from dira_core.optimizer_options import Optimizer
from dira_patchgan import PatchGANOptions

SMALL = (4, 5, 6, 7)


def build(channels: int = 1, dims: int = 2, **options: Any) -> Adversary:
    (component,) = dira_patchgan.dira_adversaries()
    module: Adversary = component.build(PatchGANOptions(**options), channels, dims)
    return module


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def plain(channels: int, widths: tuple[int, ...], dims: int) -> nn.Sequential:
    """Return the published table as torch's own layers."""
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    layers: list[nn.Module] = []
    for block, width in enumerate(widths):
        stride = 1 if block == len(widths) - 1 else 2
        layers.append(conv(channels, width, 3, stride=stride, padding=1))
        layers += [norm(width)] if block else []
        layers.append(nn.LeakyReLU(0.2))
        channels = width
    return nn.Sequential(*layers, conv(channels, 1, 3, padding=1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_one_channel_gives_the_published_number_of_parameters() -> None:
    widths = (1, 64, 128, 256, 512, 1)
    closed_form = sum(9 * a * b + b for a, b in pairwise(widths))
    assert count(build()) == closed_form
    assert f"{closed_form:,}" == "1,554,433"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dims", "size"), [(2, (40, 24)), (3, (16, 24, 9))])
def test_scores_and_gradients_are_those_of_the_published_table(
    dims: int, size: tuple[int, ...], channels_last: bool
) -> None:
    layout = (
        (torch.channels_last if dims == 2 else torch.channels_last_3d)
        if channels_last
        else (torch.contiguous_format)
    )
    ours = build(2, dims, widths=SMALL).double().to(memory_format=layout)
    theirs = plain(2, SMALL, dims).double()
    for parameter, value in zip(theirs.parameters(), ours.parameters(), strict=True):
        parameter.data = value.detach().clone(memory_format=torch.contiguous_format)
    image = torch.rand(3, 2, *size, dtype=torch.float64)
    scores = ours(image.contiguous(memory_format=layout))
    torch.testing.assert_close(scores, theirs(image))
    gradients = torch.autograd.grad(scores.square().mean(), list(ours.parameters()))
    expected = torch.autograd.grad(theirs(image).square().mean(), list(theirs.parameters()))
    torch.testing.assert_close(gradients, expected, atol=1e-14, rtol=1e-6)


@pytest.mark.parametrize("side", [9, 16, 64, 75, 224])
@pytest.mark.parametrize("dims", [2, 3])
def test_there_is_one_score_for_every_eight_pixels(dims: int, side: int) -> None:
    with torch.device("meta"):
        scores = build(dims=dims)(torch.zeros(2, 1, *[side] * dims))
    assert scores.shape == (2, 1, *[math.ceil(side / 8)] * dims)


@pytest.mark.parametrize("side", [9, 12, 16])
def test_a_small_crop_gives_scores_that_depend_on_it(side: int) -> None:
    critic = build(widths=SMALL)
    first, second = critic(torch.rand(1, 1, side, side)), critic(torch.rand(1, 1, side, side))
    assert first.isfinite().all()
    assert not torch.equal(first, second)


def test_a_crop_that_ends_in_a_single_pixel_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"at least 9 px, got \(8, 8\): raise views.size"):
        build(widths=SMALL)(torch.rand(2, 1, 8, 8))
    assert build(widths=SMALL[:2])(torch.rand(2, 1, 8, 8)).shape == (2, 1, 4, 4)
    assert build(dims=3, widths=SMALL)(torch.rand(2, 1, 4, 8, 9)).shape == (2, 1, 1, 1, 2)


def test_weights_start_normal_and_biases_as_torchs_own() -> None:
    critic = build()
    for name, value in critic.named_parameters():
        if value.dim() > 1:
            assert value.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * value.numel()))
        else:
            weight = critic.get_parameter(name.replace("bias", "weight"))
            assert value.any()
            assert value.abs().max().item() <= 1 / math.sqrt(weight[0].numel())


@pytest.mark.parametrize("conditional", [False, True])
def test_only_a_conditional_critic_depends_on_the_condition(conditional: bool) -> None:
    critic = build(conditional=conditional, widths=SMALL)
    image, one, other = torch.rand(3, 2, 1, 16, 16)
    assert critic.conditional == conditional
    assert torch.equal(critic(image, one), critic(image, other)) != conditional


def test_a_conditional_critic_has_twice_the_input_channels() -> None:
    assert count(build(3, conditional=True)) - count(build(3)) == 3 * 64 * 9


def test_every_loss_is_its_formula() -> None:
    real, fake = torch.randn(2, 3, 1, 4, 4).double()
    log_real, log_fake = real.sigmoid().log().mean(), (1 - fake.sigmoid()).log().mean()
    expected = {
        "lsgan": (
            0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
            ((fake - 1) ** 2).mean(),
        ),
        "bce": (-log_real - log_fake, -fake.sigmoid().log().mean()),
        "minimax": (-log_real - log_fake, log_fake),
        "hinge": ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(), -fake.mean()),
    }
    for loss, (critic, generator) in expected.items():
        module = build(loss=loss, widths=SMALL)
        torch.testing.assert_close(module.critic_loss(real, fake), critic)
        torch.testing.assert_close(module.generator_loss(fake), generator)
    assert build(widths=SMALL).generator_loss(fake) == expected["lsgan"][1]


def test_one_forward_serves_the_generators_gradient_and_the_critics() -> None:
    critic = build(widths=SMALL)
    real, fake = torch.rand(2, 2, 1, 16, 16)
    fake.requires_grad_()
    shared = critic(fake)
    (pull,) = torch.autograd.grad(critic.generator_loss(shared), fake, retain_graph=True)
    loss = critic.critic_loss(critic(real), shared)
    gradients = torch.autograd.grad(loss, list(critic.parameters()))

    (expected_pull,) = torch.autograd.grad(critic.generator_loss(critic(fake)), fake)
    loss = critic.critic_loss(critic(real), critic(fake.detach()))
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    assert torch.equal(pull, expected_pull)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_the_critic_learns_to_tell_noise_from_grey() -> None:
    critic = build(widths=SMALL)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(40):
        real, fake = torch.rand(4, 1, 16, 16), torch.full((4, 1, 16, 16), 0.5)
        loss = critic.critic_loss(critic(real), critic(fake))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_under_bf16_autocast_losses_are_in_float32() -> None:
    critic = build(widths=SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        scores = critic(torch.rand(2, 1, 16, 16))
        losses: list[Tensor] = [critic.critic_loss(scores, scores), critic.generator_loss(scores)]
    assert scores.dtype == torch.bfloat16
    assert [loss.dtype for loss in losses] == [torch.float32] * 2


def test_the_default_optimizer_is_that_of_the_public_code() -> None:
    (component,) = dira_patchgan.dira_adversaries()
    optimizer = Optimizer(**component.defaults["critic_optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("adam", 2e-4, None)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.5, 0.999), 0)
    assert optimizer.schedule == "constant"
