"""The U-Net decoder: sizes, counts, gradients, names and the distance, in 2-D and 3-D."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dira_unet
from dira_core import Backbone, RecipeError, Restorer, View, conv
from dira_core.nn.resnet import ResNet
from dira_unet import UNetOptions


class Tiny(Backbone):
    """One strided convolution a map, in any number of dimensions."""

    def __init__(self, dims: int, strides: tuple[int, ...], in_channels: int = 1) -> None:
        super().__init__()
        self.dims, self.strides, self.in_channels = dims, strides, in_channels
        self.channels = tuple(4 + level for level in range(len(strides)))
        steps = [b // a for a, b in zip((1, *strides), strides, strict=False)]
        self.convs = nn.ModuleList(
            conv(dims, inputs, outputs, stride=step)
            for inputs, outputs, step in zip(
                (in_channels, *self.channels), self.channels, steps, strict=False
            )
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        pyramid = []
        for layer in self.convs:
            images = layer(images)
            pyramid.append(images)
        return pyramid


def build(backbone: Backbone, **options: Any) -> Restorer:
    (component,) = dira_unet.dira_restorers()
    module: Restorer = component.build(UNetOptions(**options), backbone)
    return module


def view(crop: Tensor, clean: Tensor | None = None, image: Tensor | None = None) -> View:
    clean = crop if clean is None else clean
    image, box = clean if image is None else image, torch.zeros(len(crop), 2, 2)
    return View(crop, image, box, make_clean=clean.clone)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (224, 224), (64, 96)])
def test_on_a_resnet_the_restored_crop_has_the_size_of_the_image(size: tuple[int, int]) -> None:
    backbone = ResNet(18, 1, zero_init_residual=False)
    with torch.no_grad():
        restored = build(backbone)(backbone(torch.rand(2, 1, *size)))
    assert restored.shape == (2, 1, *size)


@pytest.mark.parametrize("size", [(75, 75), (33, 70), (97, 64)])
def test_an_odd_side_comes_out_one_pixel_larger_and_that_pixel_does_not_count(
    size: tuple[int, int],
) -> None:
    backbone = ResNet(18, 1, zero_init_residual=False)
    decoder = build(backbone)
    crop = torch.rand(2, 1, *size)
    restored = decoder(backbone(crop))
    assert restored.shape == (2, 1, *(2 * math.ceil(side / 2) for side in size))
    within = restored[:, :, : size[0], : size[1]]
    expected = (within - crop).square().mean()
    torch.testing.assert_close(decoder.distance(restored, view(crop)), expected)


@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4, 8), (4, 8), (2, 8), (8,), (1,)])
@pytest.mark.parametrize("dims", [2, 3])
def test_any_pyramid_is_decoded_to_the_size_of_the_image(
    dims: int, strides: tuple[int, ...]
) -> None:
    backbone = Tiny(dims, strides, in_channels=2)
    image = torch.rand(2, 2, *(16, 8, 24)[:dims])
    assert build(backbone)(backbone(image)).shape == image.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_every_parameter_and_every_map_gets_a_gradient(dims: int) -> None:
    backbone = Tiny(dims, (2, 4, 8))
    decoder = build(backbone)
    crop = torch.rand(2, 1, *(16, 16, 24)[:dims])
    pyramid = [maps.detach().requires_grad_() for maps in backbone(crop)]
    torch.autograd.backward(decoder.distance(decoder(pyramid), view(crop)))
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())
    assert all(maps.grad is not None and maps.grad.any() for maps in pyramid)


def test_the_decoder_learns_to_restore_an_image() -> None:
    backbone = Tiny(2, (2, 4))
    decoder = build(backbone)
    crop = torch.rand(4, 1, 8, 8)
    both = nn.ModuleList([backbone, decoder])
    optimizer = torch.optim.Adam(both.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = decoder.distance(decoder(backbone(crop)), view(crop))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("depth", "deepest", "skips"),
    [(18, 512, (256, 128, 64, 64, 0)), (50, 2048, (1024, 512, 256, 64, 0))],
)
def test_on_a_resnet_the_decoder_has_the_parameters_of_the_published_one(
    depth: int, deepest: int, skips: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        decoder = build(ResNet(depth, 3, zero_init_residual=False))
    expected, before = 0, deepest
    for skip, width in zip(skips, (256, 128, 64, 32, 16), strict=True):
        expected += (before + skip) * width * 9 + 2 * width  # convolution, batch norm
        expected += width * width * 9 + 2 * width
        before = width
    assert count(decoder) == expected + 16 * 3 * 9 + 3


def test_parameters_are_named_as_in_the_usual_decoder() -> None:
    decoder = build(Tiny(2, (2, 4)))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"head.weight", "head.bias"}
    for block in range(2):
        for layer in ("conv1", "conv2"):
            expected.add(f"blocks.{block}.{layer}.0.weight")
            expected |= {f"blocks.{block}.{layer}.1.{name}" for name in norm}
    assert set(decoder.state_dict()) == expected


def test_a_block_upsamples_puts_the_skip_behind_and_convolves_twice() -> None:
    backbone = Tiny(2, (1, 2))
    decoder = build(backbone, widths=(3,))
    shallow, deep = backbone(torch.rand(2, 1, 8, 8))
    maps = deep.repeat_interleave(2, 2).repeat_interleave(2, 3)
    maps = torch.cat([maps, shallow], 1)
    for layer in ("conv1", "conv2"):
        maps = nn.functional.conv2d(
            maps, decoder.get_parameter(f"blocks.0.{layer}.0.weight"), padding=1
        )
        deviation = (maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        maps = ((maps - maps.mean((0, 2, 3), keepdim=True)) / deviation).clamp(min=0)
    head = nn.functional.conv2d(maps, decoder.get_parameter("head.weight"), padding=1)
    torch.testing.assert_close(decoder([shallow, deep]), 1 / (1 + (-head).exp()))


def test_weights_start_from_the_rules_of_the_public_code() -> None:
    decoder = build(ResNet(18, 1, zero_init_residual=False))
    for name, value in decoder.named_parameters():
        if name == "head.weight":
            bound = math.sqrt(6 / (16 * 9 + 1 * 9))  # Xavier: inputs and outputs
        elif value.dim() > 1:
            bound = math.sqrt(6 / value[0].numel())  # Kaiming: inputs, ReLU
        else:
            expected = torch.ones_like(value) if name.endswith("weight") else 0 * value
            assert torch.equal(value, expected)
            continue
        assert value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_under_bf16_autocast_the_restored_crop_is_squashed_in_float32() -> None:
    backbone = Tiny(2, (2, 4))
    decoder = build(backbone)
    crop = torch.rand(2, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        restored = decoder(backbone(crop))
        loss = decoder.distance(restored, view(crop))
    assert restored.dtype == loss.dtype == torch.float32
    assert not torch.equal(restored, restored.bfloat16().float())
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_channels_last_is_kept_to_the_end() -> None:
    backbone = Tiny(2, (2, 4), in_channels=2)
    decoder = build(backbone)
    both = nn.ModuleList([backbone, decoder]).to(memory_format=torch.channels_last)
    crop = torch.rand(2, 2, 16, 16).contiguous(memory_format=torch.channels_last)
    pyramid = backbone(crop)
    first = decoder.get_submodule("blocks.0")(pyramid[1], pyramid[0])
    assert both
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert decoder(pyramid).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("loss", "power"), [("mse", 2), ("l1", 1)])
def test_the_distance_is_to_the_crop_over_all_pixels(loss: str, power: int) -> None:
    decoder = build(Tiny(2, (2, 4)), loss=loss)
    crop, restored, image = torch.rand(3, 2, 1, 8, 8)
    expected = (restored - crop).abs().pow(power).mean()
    torch.testing.assert_close(decoder.distance(restored, view(crop, image=image)), expected)


@pytest.mark.parametrize(("loss", "power"), [("mse", 2), ("l1", 1)])
def test_the_region_distorted_counts_what_distortions_changed_but_not_what_appearance_did(
    loss: str, power: int
) -> None:
    decoder = build(Tiny(2, (2, 4), in_channels=3), loss=loss, region="distorted")
    crop, restored, clean = torch.rand(3, 2, 3, 8, 8)
    image = clean.clone()
    image[0, 1, 2:5, 3:7] = 0.5  # in one channel: the pixel counts in all
    image[1, :, 6, 6] += 1e-8  # rounding is no distortion
    changed = (restored - crop)[0, :, 2:5, 3:7]
    expected = changed.abs().pow(power).mean() / 2  # the other image has none
    torch.testing.assert_close(decoder.distance(restored, view(crop, clean, image)), expected)


def test_the_region_distorted_of_an_undistorted_view_has_loss_zero() -> None:
    decoder = build(Tiny(2, (2, 4)), region="distorted")
    crop, restored = torch.rand(2, 2, 1, 8, 8)
    restored.requires_grad_()
    loss = decoder.distance(restored, view(crop))
    (gradient,) = torch.autograd.grad(loss, restored)
    assert loss.item() == 0
    assert not gradient.any()


def test_n_restored_is_the_option() -> None:
    assert build(Tiny(2, (2, 4))).n_restored == 1
    assert build(Tiny(2, (2, 4)), n_restored=2).n_restored == 2


def test_widths_are_the_option_and_their_number_must_fit_the_backbone() -> None:
    decoder = build(Tiny(2, (2, 4)), widths=(9, 7))
    assert decoder.get_parameter("blocks.0.conv2.0.weight").shape == (9, 9, 3, 3)
    assert decoder.get_parameter("blocks.1.conv2.0.weight").shape == (7, 7, 3, 3)
    with pytest.raises(RecipeError, match="2 blocks on this backbone, got 3 widths"):
        build(Tiny(2, (2, 4)), widths=(9, 7, 5))
