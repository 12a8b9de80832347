"""The trio as two players of one game (paper, eq. 4).

The model player minimises L = w_dis L_dis + w_res L_res + w_adv L_adv over backbone, Discriminator
and decoder; the critic player learns to tell crops from restored ones. Two exact savings against
the plain order of computation, both bitwise equal to it in the tests: the generator's step asks the
critic for the gradient at the restored image only, never for the critic's own; and the critic
scores each restored image once, for both players.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dira_core.contracts import demand, scalar_flaw
from dira_core.errors import RecipeError
from dira_core.parallel import Sharded, Strategy, Wrapped
from dira_core.precision import Precision
from dira_core.roles import Adversary, FeaturePass, trainable
from dira_core.settings import Weights
from dira_core.trio import Attempt, Model
from dira_core.types import Batch, Progress


@dataclass
class Turn:
    """One micro-batch on its way from player to player."""

    batch: Batch
    progress: Progress
    restored: Tensor | None = None
    fake_scores: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """What a player minimises.

    Attributes:
        total: Scalar to go backward from; its gradient is that of the weighted sum.
        terms: Differentiable weighted objectives, by name, for measuring gradients.
        metrics: Detached scalars for the log: each loss, unweighted, and what the roles report.
        embedding: z of view 0, detached, or None.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


class Player(ABC):
    """Modules, their loss and their optimizer, stepped together.

    Attributes:
        name: For logs and checkpoints.
        module: What is trained.
        optimizer: Over the module's parameters.
        strategy: How several processes train the module.
        wrapped: What is called: the module, or what the strategy made of it.
        shared: Parameters that several objectives pull at: the backbone's, for the model.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    wrapped: nn.Module
    shared: Sequence[Tensor] = ()

    @abstractmethod
    def losses(self, turn: Turn) -> Losses:
        """Compute the losses of a micro-batch; leave in `turn` what later players need."""

    @property
    def inputs(self) -> list[Tensor] | None:
        """Where gradients may accumulate; None for every leaf of the graph."""
        return None

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:  # noqa: B027
        """Prepare an epoch."""

    def after_step(self, progress: Progress) -> None:  # noqa: B027
        """Update what is not trained by gradient, after all players stepped."""


class ModelPlayer(Player):
    """Minimise eq. 4 over the model.

    Args:
        model: Backbone, Discriminator and decoder, with what the strategy made of them.
        optimizer: Over its parameters.
        weights: w_dis, w_res, w_adv.
        precision: Takes the adversarial gradient at the restored image.
        critic: Scores images; None leaves L_adv out.
    """

    name = "model"

    def __init__(
        self,
        model: Wrapped[Model],
        optimizer: torch.optim.Optimizer,
        weights: Weights,
        precision: Precision,
        critic: Wrapped[Adversary] | None = None,
    ) -> None:
        self.module, self.wrapped, self.strategy = model.module, model.called, model.strategy
        self.optimizer = optimizer
        self.shared = model.strategy.measurable(trainable([model.module.backbone]))
        self._discriminator = model.module.discriminator
        self._weights = weights
        self._precision = precision
        self._critic = critic

    def losses(self, turn: Turn) -> Losses:
        """Embed, restore, and take the critic's gradient at the restored image."""
        attempt: Attempt = self.wrapped(turn.batch)
        weights = self._weights.at(turn.progress.fraction * turn.progress.epochs)
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        embedding = None
        if attempt.objective is not None:
            terms["dis"] = weights["dis"] * attempt.objective.loss
            metrics["losses/dis"] = attempt.objective.loss.detach()
            metrics.update({f"dis/{k}": v.detach() for k, v in attempt.objective.metrics.items()})
            if attempt.objective.embedding is not None:
                embedding = attempt.objective.embedding
        if attempt.restored is not None and attempt.distance is not None:
            terms["res"] = weights["res"] * attempt.distance
            metrics["losses/res"] = attempt.distance.detach()
            turn.restored = attempt.restored.detach()
        total = sum(metrics[f"losses/{name}"] * weights[name] for name in terms)
        if self._critic is not None and attempt.restored is not None:
            loss, surrogate = self._judge(turn, attempt.restored, weights["adv"])
            terms["adv"] = surrogate
            metrics["losses/adv"] = loss
            total = total + weights["adv"] * loss
        metrics["losses/total"] = torch.as_tensor(total)
        return Losses(torch.stack(list(terms.values())).sum(), terms, metrics, embedding)

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        """Let the Discriminator prepare an epoch."""
        if self._discriminator is not None:
            with self.strategy.changing():
                self._discriminator.epoch_started(progress, features)

    def after_step(self, progress: Progress) -> None:
        """Let the Discriminator update its teacher or queue."""
        if self._discriminator is not None:
            with self.strategy.changing():
                self._discriminator.after_step(progress)

    def _judge(self, turn: Turn, restored: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return L_adv, and a scalar whose gradient at the model is that of w_adv L_adv."""
        assert self._critic is not None
        adversary = self._critic.module
        judged = restored.detach().requires_grad_()
        turn.fake_scores = self._critic.called(judged, condition(adversary, turn, restored))
        loss = adversary.generator_loss(turn.fake_scores)
        demand(adversary, scalar_flaw("generator_loss()", loss))
        pull = self._precision.gradient(weight * loss, judged)
        return loss.detach(), (restored * pull).sum()


class CriticPlayer(Player):
    """Minimise the critic's loss; reuses the scores of the restored images.

    Args:
        critic: The Adversary, with what the strategy made of it.
        optimizer: Over its parameters.
    """

    name = "critic"

    def __init__(self, critic: Wrapped[Adversary], optimizer: torch.optim.Optimizer) -> None:
        self.module, self.wrapped, self.strategy = critic.module, critic.called, critic.strategy
        self.optimizer = optimizer
        self._adversary = critic.module
        self._parameters: list[Tensor] = [*trainable([critic.module])]

    @property
    def inputs(self) -> list[Tensor] | None:
        """The critic's parameters: the restored images need no gradient here."""
        return self._parameters

    def losses(self, turn: Turn) -> Losses:
        """Score the crops; compare with the scores the model player left."""
        assert turn.restored is not None
        assert turn.fake_scores is not None
        real = first_rows(turn.batch, "crop", len(turn.restored))
        given = condition(self._adversary, turn, turn.restored)
        scores = self.wrapped(real, given)
        loss = self._adversary.critic_loss(scores, turn.fake_scores)
        demand(self._adversary, scalar_flaw("critic_loss()", loss))
        penalty = self._adversary.penalty(real, turn.restored, given)
        metrics = {
            "losses/critic": loss.detach(),
            "critic/real": scores.detach().float().mean(),
            "critic/fake": turn.fake_scores.detach().float().mean(),
        }
        if penalty is not None:
            if isinstance(self.strategy, Sharded):
                raise RecipeError(
                    "a gradient penalty needs whole weights, and fsdp shards them: use --set "
                    "train.strategy=ddp, or an adversary without a penalty"
                )
            metrics["losses/penalty"] = penalty.detach()
            loss = loss + penalty
        return Losses(loss, {"critic": loss}, metrics)


def condition(adversary: Adversary, turn: Turn, restored: Tensor) -> Tensor | None:
    """Return the distorted images a conditional critic sees beside the restored ones, or None."""
    if not adversary.conditional:
        return None
    return first_rows(turn.batch, "image", len(restored))


def first_rows(batch: Batch, kind: Literal["crop", "image"], rows: int) -> Tensor:
    """Return the crops or images of the first views, one view after the other, (rows, C, *S)."""
    views = batch.views[: rows // len(batch.index)]  # further ones may have other sizes
    return torch.cat([getattr(view, kind) for view in views])
