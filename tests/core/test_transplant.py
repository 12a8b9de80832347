"""Every tensor is matched, adapted or named as a misfit, and nothing is loaded by halves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dira_core.errors import CheckpointError
from dira_core.nn.resnet import ResNet
from dira_core.testing import TinyBackbone
from dira_core.transplant import families, load_into, match, rechannelled, some, stem_of


def network(channels: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_weights_of_the_same_network_match_exactly() -> None:
    torch.manual_seed(0)
    given, taker = network(), network()
    report = load_into(given.state_dict(), taker)
    assert report.exact
    assert set(report.matched) == set(taker.state_dict())
    images = torch.rand(2, 1, 9, 9)
    assert torch.equal(given(images), taker(images))


def test_each_misfit_is_named_and_then_nothing_is_loaded() -> None:
    taker = network()
    before, state = copied(taker), copied(network())
    del state["1.bias"]
    state["2.weight"] = torch.zeros(2, 4, 1, 1)
    state["0.bias"] = torch.zeros(4, dtype=torch.int64)
    state["fc.weight"] = torch.zeros(1)
    report = load_into(state, taker)
    assert report == match(state, taker)
    assert not report.complete
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("fc.weight",)
    assert report.wrong == {
        "2.weight": "is 2x4x1x1, must be 2x4x3x3",
        "0.bias": "is 4 int64, must be 4",
    }
    assert set(report.matched) == set(before) - {"1.bias", "2.weight", "0.bias"}
    for text in ("1 missing (1.bias)", "2 of another shape", "1 unexpected (fc.weight)"):
        assert text in report.differences()
        assert text in report.summary("network")
    assert report.summary("network").startswith("6 of 9 network tensors matched, ")
    after = taker.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_is_unexpected_does_not_keep_the_rest_from_being_loaded() -> None:
    given, taker = network(), network()
    report = load_into(given.state_dict() | {"fc.weight": torch.zeros(1)}, taker)
    assert report.complete
    assert not report.exact
    assert torch.equal(taker.state_dict()["0.weight"], given.state_dict()["0.weight"])


def test_how_many_batches_a_norm_has_seen_need_not_be_known() -> None:
    state = copied(network())
    halved = {name: tensor.half() for name, tensor in state.items()}
    del state["1.num_batches_tracked"]
    assert load_into(state, network()).exact
    assert load_into(halved, network()).exact


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (4, 1), (1, 2)])
def test_only_the_stem_is_given_other_channels(given: int, wanted: int) -> None:
    donor, taker = network(given), network(wanted)
    assert not load_into(donor.state_dict(), taker).complete
    report = load_into(donor.state_dict(), taker, "0.weight")
    assert report.complete
    assert not report.exact
    assert report.adapted == {"0.weight": f"{given} -> {wanted} channels"}
    grey = torch.rand(2, 1, 9, 9)
    wide, narrow = grey.expand(-1, given, -1, -1), grey.expand(-1, wanted, -1, -1)
    torch.testing.assert_close(taker.eval()(narrow), donor.eval()(wide))


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_halved_stem_loses_nothing_more_when_its_channels_change(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    donor, taker = network(3), network(1)
    halved = {name: tensor.to(kind) for name, tensor in donor.state_dict().items()}
    donor.load_state_dict(halved)
    load_into(halved, taker, "0.weight")
    grey = torch.rand(2, 1, 9, 9)
    torch.testing.assert_close(taker(grey), donor(grey.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_channels_that_are_not_repeated_grey_are_not_made_up() -> None:
    report = load_into(network(3).state_dict(), network(2), "0.weight")
    assert list(report.wrong) == ["0.weight"]
    empty = {"0.weight": torch.zeros(4, 0, 3, 3)}
    assert list(match(empty, network(), "0.weight").wrong) == ["0.weight"]


def test_three_channels_made_of_one_sum_to_it_bit_for_bit() -> None:
    weight = torch.randn(64, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    weight = weight * 10.0 ** torch.arange(-20, 20, 40 / 64).view(-1, 1, 1, 1)
    split = rechannelled(weight, 3)
    assert torch.equal(split.double().sum(1, keepdim=True), weight.double())
    assert torch.equal(rechannelled(split, 1), weight)
    torch.testing.assert_close(split, weight.expand(-1, 3, -1, -1) / 3)
    assert rechannelled(weight, 1) is weight


def test_a_colour_image_then_counts_by_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    found = F.conv2d(image, rechannelled(weight, 3))
    torch.testing.assert_close(found, F.conv2d(image.mean(1, keepdim=True), weight))


def test_the_stem_is_the_convolution_that_reads_the_image() -> None:
    assert stem_of(ResNet(18, 1, zero_init_residual=False)) == "conv1.weight"
    for dims in (2, 3):
        assert stem_of(TinyBackbone(2, dims)) == "stages.0.0.weight"
    other = TinyBackbone(2)
    other.in_channels = 1
    assert stem_of(other) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_not_loaded(value: float) -> None:
    taker, state = network(), copied(network())
    before = copied(taker)
    state["1.running_var"][2] = value
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinity \(1.running_var\)"):
        load_into(state, taker)
    assert all(torch.equal(taker.state_dict()[n], tensor) for n, tensor in before.items())


def test_many_names_are_said_in_few_words() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d"]) == "a, b and 2 more"
    names = ["module.k.fc.weight", "module.k.fc.bias", "module.queue", "k.fc.other"]
    assert families(names) == "3 k.fc.*, 1 queue"
