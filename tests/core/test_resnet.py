"""The ResNet backbone against torchvision's network."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torchvision

from dira_core.encodings import pool
from dira_core.nn.resnet import ResNet


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("size", [(64, 64), (75, 40)])
def test_the_pyramid_has_the_channels_and_strides_the_backbone_says(
    depth: int, size: tuple[int, int]
) -> None:
    with torch.device("meta"):
        backbone = ResNet(depth, 1, zero_init_residual=False)
        pyramid = backbone(torch.zeros(2, 1, *size))
    assert [tuple(m.shape) for m in pyramid] == [
        (2, channels, *(math.ceil(side / stride) for side in size))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert (backbone.dims, backbone.in_channels, len(pyramid)) == (2, 1, 5)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_parameters_and_buffers_are_named_and_shaped_as_torchvisions_without_fc(depth: int) -> None:
    with torch.device("meta"):
        ours = ResNet(depth, 3, zero_init_residual=False).state_dict()
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
    kept = {name: value.shape for name, value in theirs.items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in ours.items()} == kept


def test_with_three_channels_one_seed_gives_torchvisions_weights() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(zero_init_residual=True).state_dict()
    torch.manual_seed(0)
    ours = ResNet(18, 3, zero_init_residual=True).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_torchvisions_weights_give_torchvisions_features() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = torch.nn.Identity()
    ours = ResNet(18, 3, zero_init_residual=False).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(pool(ours(images)[-1]), theirs(images))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_any_number_of_channels_starts_from_torchvisions_rule(channels: int) -> None:
    torch.manual_seed(0)
    weight = ResNet(18, channels, zero_init_residual=False).conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    fan_out = 64 * 7 * 7
    deviation = math.sqrt(2 / fan_out)
    n = weight.numel()
    assert weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * n))
    assert weight.mean().item() == pytest.approx(0, abs=4 * deviation / math.sqrt(n))


@pytest.mark.parametrize("zero", [False, True])
def test_zero_init_residual_makes_a_block_start_as_its_shortcut(zero: bool) -> None:
    torch.manual_seed(0)
    block = ResNet(18, 1, zero_init_residual=zero).layer1[0]
    maps = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(maps), maps) == zero


def test_every_parameter_gets_a_gradient_from_the_deepest_map() -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, 1, zero_init_residual=False)
    backbone(torch.rand(2, 1, 64, 64))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_maps_of_the_pyramid_are_not_overwritten_by_deeper_layers() -> None:
    torch.manual_seed(0)
    backbone = ResNet(18, 1, zero_init_residual=False).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        pyramid = backbone(images)
        stem = torch.relu(backbone.bn1(backbone.conv1(images)))
        assert torch.equal(pyramid[0], stem)
        assert torch.equal(pyramid[1], backbone.layer1(backbone.maxpool(stem)))
        assert torch.equal(pyramid[3], backbone.layer3(pyramid[2]))


@pytest.mark.slow
def test_torchvision_is_not_imported_before_a_backbone_is_built() -> None:
    code = "import sys, dira_core.nn.resnet; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
