"""The roles' contracts: what is encoded when, and what a role need not write itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dira_core import Adversary, Backbone, Batch, Discriminator, Encodings, Objective, View, pool
from dira_core.roles import trainable


class Counting(Backbone):
    """Three maps by averaging; counts how often it is asked."""

    channels, strides, in_channels, dims = (1, 1, 1), (1, 2, 4), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        self.calls += 1
        return [nn.functional.avg_pool2d(images, stride) for stride in self.strides]


class Empty(Discriminator):
    """Learns nothing, with two parameters of which one is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, encodings: Encodings) -> Objective:
        return Objective(self.trained.sum())


def batch(n_views: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(n_views, 3, 2, 1, 8, 8, generator=generator)
    box = torch.zeros(2, 2, 2)
    views = tuple(View(crop, image, box, make_clean=clean.clone) for crop, clean, image in pictures)
    return Batch(views, index=torch.arange(2))


def test_pool_averages_over_space_in_float32_in_two_and_three_dimensions() -> None:
    maps = torch.arange(24.0).reshape(2, 3, 4)
    expected = torch.tensor([[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]])
    assert torch.equal(pool(maps.reshape(2, 3, 2, 2)), expected)
    assert torch.equal(pool(maps.reshape(2, 3, 1, 2, 2)), expected)
    pooled = pool(maps.reshape(2, 3, 2, 2).bfloat16())
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, expected)


def test_a_view_is_encoded_once_whoever_asks_and_only_when_asked() -> None:
    backbone, given = Counting(), batch(3)
    encodings = Encodings(backbone, given)
    assert backbone.calls == 0
    first = encodings[1]
    assert encodings[1] is first
    assert backbone.calls == 1
    _ = encodings[0]
    assert backbone.calls == 2
    assert len(encodings) == 3


@pytest.mark.parametrize("sees", ["image", "clean"])
def test_encodings_encode_the_image_that_is_seen(sees: str) -> None:
    given = batch(2)
    encodings = Encodings(Counting(), given, sees)
    for number, view in enumerate(given.views):
        seen = view.image if sees == "image" else view.clean
        assert torch.equal(encodings.image(number), seen)
        assert torch.equal(encodings[number].pyramid[0], seen)
        torch.testing.assert_close(encodings[number].pooled, seen.mean((2, 3)))


def test_the_distorted_image_is_seen_by_default() -> None:
    given = batch(1)
    assert Encodings(Counting(), given).image(0) is given.views[0].image


def test_a_discriminator_has_one_group_with_every_trained_parameter_by_default() -> None:
    module = Empty()
    (group,) = module.param_groups()
    assert [id(p) for p in group["params"]] == [id(module.trained)]
    assert trainable([module, nn.Linear(2, 2).requires_grad_(False)]) == group["params"]


def test_an_adversary_has_no_penalty_and_no_condition_by_default() -> None:
    class Plain(Adversary):
        def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
            return image

        def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
            return real.mean() - fake.mean()

        def generator_loss(self, fake: Tensor) -> Tensor:
            return fake.mean()

    adversary = Plain()
    assert adversary.penalty(torch.ones(1), torch.ones(1), None) is None
    assert not adversary.conditional


@pytest.mark.parametrize("role", [Backbone, Discriminator, Adversary])
def test_a_role_cannot_be_built_without_its_parts(role: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        role()
