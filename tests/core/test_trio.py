"""The players of a trio minimise eq. 4, and save work without changing a bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dira_core import Adversary, Discriminator, Encodings, Objective, Progress, Restorer, View
from dira_core.errors import RecipeError
from dira_core.parallel import Alone, wrapped
from dira_core.players import CriticPlayer, ModelPlayer, Player, Turn
from dira_core.precision import Precision
from dira_core.settings import Weights
from dira_core.testing import TinyBackbone, tiny_batch
from dira_core.trio import Model, Trio

CPU = torch.device("cpu")


class Agree(Discriminator):
    """Mean squared difference of two projected views."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 6)

    def forward(self, encodings: Encodings) -> Objective:
        z1, z2 = (self.head(encodings[i].pooled) for i in range(2))
        return Objective((z1 - z2).square().mean(), embedding=z1)


class Upscale(Restorer):
    """Deepest map back to pixels by one transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ConvTranspose2d(16, 1, 8, stride=8)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        return self.head(pyramid[-1]).sigmoid()

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return (restored - view.crop).square().mean()


class Patches(Adversary):
    """One convolution and LSGAN; optionally conditional."""

    def __init__(self, conditional: bool = False) -> None:
        super().__init__()
        self.conditional = conditional
        self.net = nn.Sequential(
            nn.Conv2d(1 + conditional, 4, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3)
        )

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(image if condition is None else torch.cat([image, condition], 1))

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())

    def generator_loss(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()


def trio(conditional: bool = False) -> Trio:
    torch.manual_seed(0)
    return Trio(TinyBackbone(), Agree(), Upscale(), Patches(conditional))


def players(parts: Trio, weights: Weights, precision: str = "fp32") -> list[Player]:
    assert parts.adversary is not None
    model, critic = wrapped(Model(parts), Alone()), wrapped(parts.adversary, Alone())
    sgd, critic_sgd = (torch.optim.SGD(m.called.parameters(), 0.1) for m in (model, critic))
    return [
        ModelPlayer(model, sgd, weights, Precision(precision, CPU), critic),
        CriticPlayer(critic, critic_sgd),
    ]


def naive_gradients(parts: Trio, weights: Weights) -> tuple[list[Tensor], list[Tensor]]:
    """Compute both players' gradients in the plain order: score twice, drop the critic's."""
    batch, critic = tiny_batch(), parts.adversary
    assert critic is not None
    assert parts.discriminator is not None
    assert parts.restorer is not None
    view = batch.views[0]
    given = view.image if critic.conditional else None
    encodings = Encodings(parts.backbone, batch)
    dis = parts.discriminator(encodings).loss
    restored = parts.restorer(encodings[0].pyramid)
    res = parts.restorer.distance(restored, view)
    adv = critic.generator_loss(critic(restored, given))
    (weights.dis * dis + weights.res * res + weights.adv * adv).backward()
    model = [parts.backbone, parts.discriminator, parts.restorer]
    found = [p.grad.clone() for m in model for p in m.parameters() if p.grad is not None]
    critic.zero_grad()
    critic.critic_loss(critic(view.crop, given), critic(restored.detach(), given)).backward()
    return found, [p.grad.clone() for p in critic.parameters() if p.grad is not None]


def first_turn() -> Turn:
    return Turn(tiny_batch(), Progress(0, 4, 0, 4))


@pytest.mark.parametrize("conditional", [False, True])
def test_shared_scores_and_frozen_critic_are_bitwise_the_naive_step(conditional: bool) -> None:
    weights = Weights(dis=1, res=10, adv=0.5)
    wanted_model, wanted_critic = naive_gradients(trio(conditional), weights)
    parts = trio(conditional)
    model, critic = players(parts, weights)
    turn = first_turn()
    model.losses(turn).total.backward()
    assert all(p.grad is None for p in critic.module.parameters())
    critic.losses(turn).total.backward(inputs=critic.inputs)
    order = [parts.backbone, parts.discriminator, parts.restorer]
    found = [p.grad for m in order if m is not None for p in m.parameters()]
    assert len(found) == len(wanted_model)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted_model, strict=True) if a is not None)
    found = [p.grad for p in critic.module.parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(found, wanted_critic, strict=True) if a is not None
    )


def test_the_total_is_the_weighted_sum_of_equation_4() -> None:
    weights = Weights(dis=2, res=3, adv=0.5)
    model, _ = players(trio(), weights)
    metrics = model.losses(first_turn()).metrics
    by_hand = 2 * metrics["losses/dis"] + 3 * metrics["losses/res"] + 0.5 * metrics["losses/adv"]
    torch.testing.assert_close(metrics["losses/total"], by_hand)


def test_a_weight_that_grows_counts_as_much_as_its_epoch_says() -> None:
    growing, fixed = Weights(adv=0.5, ramps={"adv": (1, 3)}), Weights(adv=0.25)
    gradients = []
    for weights in (growing, fixed):
        model, _ = players(trio(), weights)
        losses = model.losses(Turn(tiny_batch(), Progress(2, 4, 2, 4)))
        losses.total.backward()
        gradients.append([p.grad for p in model.module.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_fp16_loss_scaling_leaves_the_adversarial_gradient_unchanged() -> None:
    weights = Weights(dis=0, res=0, adv=1)
    gradients = []
    for precision in ("fp32", "fp16"):
        model, _ = players(trio(), weights, precision)
        model.losses(first_turn()).total.backward()  # no autocast: only the scale differs
        gradients.append([p.grad.clone() for p in model.module.parameters() if p.grad is not None])
    for plain, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, scaled)


def test_a_view_is_encoded_once_however_many_roles_ask() -> None:
    parts = trio()
    seen: list[int] = []
    parts.backbone.register_forward_hook(lambda *_: seen.append(1))
    Model(parts)(tiny_batch())
    assert len(seen) == 2
    Model(parts, discriminator_sees="clean")(tiny_batch())
    assert len(seen) == 2 + 3


def test_the_discriminator_may_see_the_view_before_distortion() -> None:
    batch = tiny_batch()
    torch.manual_seed(0)
    backbone = TinyBackbone().eval()
    clean = Encodings(backbone, batch, "clean")
    torch.testing.assert_close(clean[0].pyramid[-1], backbone(batch.views[0].clean)[-1])
    assert not torch.equal(clean[0].pooled, Encodings(backbone, batch)[0].pooled)


def test_every_parameter_of_the_model_is_in_exactly_one_group() -> None:
    model = Model(trio())
    grouped = [id(p) for group in model.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_roles_may_be_absent_but_not_all_of_them() -> None:
    full = trio()
    for absent in ("discriminator", "restorer"):
        parts = copy.copy(full)
        parts.adversary = None
        setattr(parts, absent, None)
        parts.check()
        assert Model(parts)(tiny_batch()) is not None
    with pytest.raises(RecipeError, match="nothing to train"):
        Trio(TinyBackbone()).check()
    with pytest.raises(RecipeError, match="choose a restorer"):
        Trio(TinyBackbone(), Agree(), None, Patches()).check()
