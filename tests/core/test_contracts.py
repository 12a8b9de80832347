"""What a role returns against its contract is called its mistake, not a bug of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dira_core import Discriminator, Distortion, Draws, Encodings, Objective, Restorer, Trio, View
from dira_core.errors import PluginError
from dira_core.operations import distort
from dira_core.testing import TinyBackbone, tiny_batch
from dira_core.trio import Model


class Head(Discriminator):
    """A Discriminator that makes of its loss what it is told."""

    def __init__(self, make: Callable[[Tensor], Any], backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(16, 4), nn.Linear(4, 4)
        self.make, self.kept = make, backbone

    def forward(self, encodings: Encodings) -> Objective:
        made: Objective = self.make(self.head(encodings[0].pooled))
        return made


class Up(Restorer):
    """A Restorer that makes of its image what it is told."""

    def __init__(self, image: Callable[[Tensor], Any], distance: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 1, 8, 8)
        self.image, self.made = image, distance

    def forward(self, pyramid: Any) -> Tensor:
        made: Tensor = self.image(self.up(pyramid[-1]))
        return made

    def distance(self, restored: Tensor, view: View) -> Tensor:
        made: Tensor = self.made((restored - view.crop).square())
        return made


def same(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("make", "flaw"),
    [
        (lambda z: z.mean(), "returned Tensor, not an Objective"),
        (lambda z: None, "returned NoneType, not an Objective"),
        (lambda z: Objective(z.mean(1)), r"the loss is not a scalar, but \(4,\)"),
        (lambda z: Objective(cast(Tensor, 1.0)), "the loss is no tensor, but float"),
        (
            lambda z: Objective(z.mean(), {"m": cast(Tensor, 0.5)}),
            "metric 'm' is no tensor, but",
        ),
        (lambda z: Objective(z.mean(), {}, z.mean()), r"the embedding is \(\), not \(B, D\)"),
    ],
)
def test_a_discriminator_that_returns_something_else_is_named(make: Any, flaw: str) -> None:
    with pytest.raises(PluginError, match=f"^Head of '.*': .*{flaw}.*dira plugins check") as caught:
        Model(Trio(TinyBackbone(), Head(make)))(tiny_batch())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "distance", "flaw"),
    [
        (lambda x: None, Tensor.mean, "returned NoneType"),
        (lambda x: x[..., ::2], Tensor.mean, r"returned \(4, 1, 32, 16\), not \(4, 1, 32, 32\)"),
        (same, lambda x: x.mean((1, 2, 3)), r"distance\(\) is not a scalar, but \(4,\)"),
        (same, lambda x: 0.0, r"distance\(\) is no tensor, but float"),
    ],
)
def test_a_restorer_that_returns_something_else_is_named(
    image: Any, distance: Any, flaw: str
) -> None:
    with pytest.raises(PluginError, match=f"^Up of '.*': .*{flaw}"):
        Model(Trio(TinyBackbone(), restorer=Up(image, distance)))(tiny_batch())


def test_a_parameter_in_no_group_would_never_be_trained_and_is_refused() -> None:
    class Forgetful(Head):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.head.parameters()}]

    with pytest.raises(PluginError, match="Forgetful of '.*': .*every parameter exactly once"):
        Model(Trio(TinyBackbone(), Forgetful(same))).param_groups()


def test_groups_of_generators_are_not_used_up_by_the_check() -> None:
    class Lazy(Head):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.parameters()}]

    group, _ = Model(Trio(TinyBackbone(), Lazy(same))).param_groups()
    assert len(list(group["params"])) == 4


def test_a_discriminator_that_keeps_the_backbone_as_a_module_is_told_so() -> None:
    backbone = TinyBackbone()
    with pytest.raises(PluginError, match=r"'kept\.stages.*keep no module of theirs"):
        Model(Trio(backbone, Head(same, backbone))).param_groups()


def test_maps_that_are_not_as_the_backbone_says_are_named_as_its_fault() -> None:
    class Narrow(TinyBackbone):
        channels = (8, 12, 8)

        def forward(self, images: Tensor) -> list[Tensor]:
            return [*super().forward(images)[:2], torch.zeros(len(images), 16, 4, 4)]

    with pytest.raises(PluginError, match=r"^Narrow of '.*': its maps are .*\[8, 12, 8\]"):
        Encodings(Narrow(), tiny_batch())[0]


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_a_distortion_that_changes_the_shape_is_named(p: float) -> None:
    class Half(Distortion):
        def forward(self, images: Tensor, draws: Draws) -> Tensor:
            return images[..., ::2]

    images = torch.rand(8, 1, 8, 8)
    with pytest.raises(PluginError, match=r"^Half of '.*': .*1, 8, 4\), not \(\d, 1, 8, 8\)"):
        distort(Half(), images, Draws(torch.arange(8), seed=0), p)
