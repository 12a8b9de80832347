"""Convolutions of small maps: the gradients that convolution has, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from dira_core.nn.small_maps import SmallMapConv2d, for_small_maps

SHAPES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"kernel_size": 3, "padding": 1}, (1, 1)),
    ({"kernel_size": 3, "padding": 1}, (2, 2)),
    ({"kernel_size": 3, "padding": 1, "stride": 2}, (2, 2)),
    ({"kernel_size": 3, "padding": 1, "stride": 2}, (7, 8)),
    ({"kernel_size": (1, 3), "padding": (0, 1), "bias": False}, (3, 5)),
    ({"kernel_size": (4, 2), "padding": (2, 0), "stride": (3, 1)}, (5, 4)),
    ({"kernel_size": 3}, (4, 5)),
]


def pair(options: dict[str, Any]) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return a convolution of small maps, and torch's with the same weights in float64."""
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 10, **options).to(memory_format=torch.channels_last)
    plain.weight.data = plain.weight.data.bfloat16().float()
    if plain.bias is not None:
        plain.bias.data = plain.bias.data.bfloat16().float()
    small = copy.deepcopy(plain)
    for_small_maps(small)
    assert type(small) is SmallMapConv2d
    return small, plain.double()


def learned(conv: nn.Conv2d, images: Tensor, *, bf16: bool) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = conv(images)
    wanted = torch.linspace(-2, 3, output.numel()).bfloat16().view(output.shape)
    torch.autograd.backward(output, wanted.to(output.dtype))
    gradients = {name: p.grad for name, p in conv.named_parameters()} | {"images": images.grad}
    return {name: g.double() for name, g in gradients.items() if g is not None} | {
        "output": output.detach().double()
    }


@pytest.mark.parametrize(("options", "sides"), SHAPES)
def test_gradients_are_those_of_float64_but_for_the_rounding_to_bf16(
    options: dict[str, Any], sides: tuple[int, int]
) -> None:
    small, exact = pair(options)
    images = torch.randn(5, 6, *sides).bfloat16().float()
    found, expected = learned(small, images, bf16=True), learned(exact, images.double(), bf16=False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=2**-8, atol=2**-8 * scale, msg=name)


def test_a_penalty_on_gradients_learns_as_with_torchs() -> None:
    small, exact = pair({"kernel_size": 3, "padding": 1})
    images = torch.randn(4, 6, 2, 2).bfloat16().float()

    def penalised(conv: nn.Conv2d, images: Tensor, *, bf16: bool) -> Tensor:
        images = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = conv(images).square()
        (slope,) = torch.autograd.grad(output.double().sum(), images, create_graph=True)
        torch.autograd.backward(slope.double().square().mean())
        assert conv.weight.grad is not None
        return conv.weight.grad.double()

    found = penalised(small, images, bf16=True)
    expected = penalised(exact, images.double(), bf16=False)
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(("side", "bf16"), [(5, True), (5, False), (2, False)])
def test_larger_maps_and_float32_go_torchs_way_to_the_bit(side: int, bf16: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 10, 3, padding=1)
    small = copy.deepcopy(plain)
    for_small_maps(small)
    images = torch.randn(3, 6, side, side)
    found, expected = learned(small, images, bf16=bf16), learned(plain, images, bf16=bf16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_plain_convolutions_with_patches_are_turned_and_weights_stay_theirs() -> None:
    class Own(nn.Conv2d): ...

    kept = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        Own(4, 4, 3),
        nn.Conv3d(4, 4, 3),
    ]
    for_small_maps(nn.ModuleList(kept))
    assert not any(isinstance(part, SmallMapConv2d) for part in kept)
    net = resnet18()
    before = net.state_dict()
    for_small_maps(net)
    after = net.state_dict()
    assert list(before) == list(after)
    assert all(before[name] is not None and after[name].equal(before[name]) for name in before)
    assert sum(isinstance(part, SmallMapConv2d) for part in net.modules()) == 17


def test_a_network_in_evaluation_says_the_same_to_the_bit() -> None:
    torch.manual_seed(0)
    net = resnet18().eval()
    other = copy.deepcopy(net)
    for_small_maps(other)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(images), other(images))
