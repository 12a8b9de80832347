"""Layers in two and three dimensions against plain arithmetic and torch's own."""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import (
    batch_norm,
    cells,
    conv,
    doubling_conv,
    instance_norm,
    mlp,
    norm_layer,
    unit,
    upsample,
)
from dira_core.nn.layers import Norm

NORMS: tuple[Literal["batch", "instance", "group"], ...] = get_args(Norm)
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("size", [(8, 9), (5, 8, 9)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_convolution_divides_every_side_by_its_stride_rounding_up(
    size: tuple[int, ...], stride: int, kernel: int
) -> None:
    layer = conv(len(size), 2, 3, kernel=kernel, stride=stride)
    expected = (1, 3, *(math.ceil(side / stride) for side in size))
    assert layer(torch.zeros(1, 2, *size)).shape == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolution_has_a_bias_unless_told_otherwise(dims: int) -> None:
    assert conv(dims, 2, 3).bias is not None
    assert conv(dims, 2, 3, bias=False).bias is None


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_batch_norm_leaves_mean_0_and_variance_1_over_batch_and_space(
    size: tuple[int, ...],
) -> None:
    maps = 3 * randn(6, 2, *size, dtype=torch.float32) + 5
    channels = batch_norm(len(size), 2)(maps).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.var(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_instance_norm_standardises_every_channel_of_every_image(size: tuple[int, ...]) -> None:
    maps = 3 * randn(2, 3, *size) + 5
    normed = instance_norm(maps)
    for image in range(2):
        for channel in range(3):
            values = maps[image, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            expected = [(v - mean) / math.sqrt(variance + 1e-5) for v in values]
            assert normed[image, channel].flatten().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_norm_keeps_the_layout_and_equals_torch_in_value_and_gradient(
    size: tuple[int, ...], channels_last: bool
) -> None:
    layout = CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    maps = randn(2, 3, *size).contiguous(memory_format=layout).requires_grad_()
    weight = randn(2, 3, *size, seed=1)
    ours, theirs = instance_norm(maps), F.instance_norm(maps.contiguous())
    assert ours.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ours, theirs.contiguous(memory_format=layout), rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), maps)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), maps)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-13)


def test_instance_norm_refuses_a_single_pixel() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        instance_norm(randn(2, 3, 1, 1))


def test_gradients_of_instance_norm_agree_with_finite_differences() -> None:
    maps = randn(2, 2, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(instance_norm, (maps,))


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
def test_upsampling_to_twice_the_size_repeats_every_pixel(size: tuple[int, ...]) -> None:
    maps = randn(2, 3, *size)
    expected = maps
    for axis in range(2, maps.dim()):
        expected = expected.repeat_interleave(2, dim=axis)
    assert torch.equal(upsample(maps, [2 * side for side in size]), expected)


@pytest.mark.parametrize("side", range(1, 130))
def test_upsampling_to_an_odd_size_is_doubling_without_the_last_pixel(side: int) -> None:
    maps = torch.arange(float(side)).expand(1, 1, 1, side)
    doubled = maps.repeat_interleave(2, dim=3)
    assert torch.equal(upsample(maps, (1, 2 * side - 1)), doubled[..., :-1])


def test_an_mlp_without_norm_is_matrices_biases_and_relu() -> None:
    net = mlp([4, 5, 6, 3], norm=False).double()
    x = randn(7, 4)
    a, b, c = (layer for layer in net if isinstance(layer, nn.Linear))
    hidden = (x @ a.weight.T + a.bias).clamp(min=0)
    hidden = (hidden @ b.weight.T + b.bias).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ c.weight.T + c.bias)


def test_an_mlp_with_norm_standardises_before_every_relu_but_not_at_the_end() -> None:
    net = mlp([4, 5, 3]).double()
    x = randn(7, 4)
    first, last = (layer for layer in net if isinstance(layer, nn.Linear))
    hidden = x @ first.weight.T
    deviation = (hidden.var(0, correction=0) + 1e-5).sqrt()
    hidden = ((hidden - hidden.mean(0)) / deviation).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ last.weight.T + last.bias)


def test_an_mlp_has_no_bias_where_a_batch_norm_would_swallow_it() -> None:
    assert [layer.bias is None for layer in mlp([4, 5, 3])[::3]] == [True, False]
    assert [layer.bias is None for layer in mlp([4, 5, 3], last_norm=True)[::3]] == [True, True]


@pytest.mark.parametrize("size", [(2, 5), (3, 1, 2)])
@pytest.mark.parametrize("norm", [True, False])
def test_an_mlp_of_maps_is_one_of_vectors_for_each_cell(size: tuple[int, ...], norm: bool) -> None:
    of_cells = mlp([4, 5, 3], dims=len(size), norm=norm, last_norm=norm).double()
    of_vectors = mlp([4, 5, 3], norm=norm, last_norm=norm).double()
    values = {
        key: value.view_as(of_vectors.state_dict()[key])
        for key, value in of_cells.state_dict().items()
    }
    of_vectors.load_state_dict(values)
    maps = randn(6, 4, *size)
    rows = of_vectors(maps.movedim(1, -1).flatten(0, -2))
    torch.testing.assert_close(of_cells(maps).movedim(1, -1).flatten(0, -2), rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_vectors_are_as_long_as_one_in_float32_or_better(dtype: torch.dtype) -> None:
    found = unit(randn(3, 2, 5).to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.norm(dim=2), torch.ones_like(found[..., 0]))


@pytest.mark.parametrize("size", [(2, 3), (2, 1, 2)])
def test_cells_are_the_directions_of_a_maps_vectors_row_by_row(size: tuple[int, ...]) -> None:
    maps = randn(2, 4, *size)
    found = cells(maps)
    for image in range(2):
        for number, place in enumerate(itertools.product(*map(range, size))):
            vector = maps[(image, slice(None), *place)]
            expected = vector / vector.square().sum().sqrt()
            torch.testing.assert_close(found[image, number], expected)


def test_the_last_norm_gives_mean_0_and_variance_1_without_parameters() -> None:
    net = mlp([4, 5, 3], last_norm=True)
    out = net(randn(9, 4, dtype=torch.float32))
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert not list(net[-1].parameters())


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize(("kind", "group"), [("instance", 1), ("group", 16)])
def test_norms_of_an_image_leave_mean_0_and_variance_1_in_each_group(
    kind: Literal["instance", "group"], group: int, size: tuple[int, ...]
) -> None:
    layer = norm_layer(kind, len(size), 48).double()
    normed = layer(3 + 2 * randn(2, 48, *size)).detach().reshape(2, 48 // group, -1)
    torch.testing.assert_close(normed.mean(-1), torch.zeros_like(normed[..., 0]))
    assert torch.allclose(normed.var(-1, correction=0), torch.ones_like(normed[..., 0]), atol=1e-4)
    assert len(list(layer.parameters())) == 2


def test_a_group_norm_takes_any_number_of_channels_and_a_single_pixel() -> None:
    for channels in (1, 8, 24, 36, 512):
        for kind in NORMS:
            layer = norm_layer(kind, 3, channels)
            assert layer(torch.zeros(2, channels, 1, 1, 1)).shape[1] == channels


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_a_doubling_convolution_makes_a_block_of_every_pixel(size: tuple[int, ...]) -> None:
    layer = doubling_conv(len(size), 2).double()
    maps = randn(1, 2, *size)
    far = [1] * len(size)
    expected = maps[..., *[0] * len(size)] @ layer.weight[..., *far]
    doubled = layer(maps)
    assert doubled.shape[2:] == tuple(2 * side for side in size)
    assert layer.bias is not None
    torch.testing.assert_close(doubled[..., *far], expected + layer.bias)
