"""A training step written straight down, without an engine."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from dira_core.build import layout
from dira_core.encodings import Encodings
from dira_core.optim import build_optimizer
from dira_core.precision import Precision
from dira_core.recipe import Recipe
from dira_core.trio import Trio, cut
from dira_core.types import Batch, Progress


class BareLoop:
    """The same mathematics written straight down, without an engine.

    Args:
        trio: Freshly built and prepared.
        batch: Trained on in every step.
        recipe: Weights and optimizers.
        precision: Of the networks, unless plain.
        progress: How far the run is, in every step.
        plain: fp32, contiguous, the critic's gradients computed in the generator's step and
            dropped, the restored images scored twice: what the public code does.
    """

    def __init__(
        self,
        trio: Trio,
        batch: Batch,
        recipe: Recipe,
        precision: Precision,
        progress: Progress,
        *,
        plain: bool,
    ) -> None:
        self._trio, self._weights, self._plain = trio, recipe.weights, plain
        self._progress = progress
        self._precision = Precision("fp32", precision.device) if plain else precision
        self._batch = contiguous(batch) if plain else batch
        roles: list[nn.Module] = [m for m in (trio.discriminator, trio.restorer) if m is not None]
        modules = nn.ModuleList([trio.backbone, *roles]).to(precision.device).train()
        last = layout(trio.backbone.dims + 2)
        if not plain and recipe.train.channels_last:
            modules = modules.to(memory_format=last)
        groups = [{"params": list(modules.parameters())}]
        self._optimizer = build_optimizer(groups, recipe.optimizer, recipe.train.batch_size)
        if trio.adversary is not None:
            critic = trio.adversary.to(precision.device).train()
            if not plain and recipe.train.channels_last:
                critic = critic.to(memory_format=last)
            groups = [{"params": list(critic.parameters())}]
            self._critic_optimizer = build_optimizer(
                groups, recipe.critic_optimizer, recipe.train.batch_size
            )

    def step(self) -> None:
        """Take one step of generator and critic."""
        trio, weights, batch = self._trio, self._weights, self._batch
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast():
            encodings = Encodings(trio.backbone, batch)
            loss = torch.zeros(())
            if trio.discriminator is not None:
                loss = loss + weights.dis * trio.discriminator(encodings).loss
            restored = None
            if trio.restorer is not None:
                whole = trio.restorer(encodings[0].pyramid)
                restored = cut(whole, batch.views[0].crop.shape)
                loss = loss + weights.res * trio.restorer.distance(restored, batch.views[0])
        if trio.adversary is None or restored is None:
            torch.autograd.backward(loss)
            self._optimizer.step()
            self._follow()
            return
        adversary, view = trio.adversary, batch.views[0]
        seen = view.image if adversary.conditional else None
        judged = restored if self._plain else restored.detach().requires_grad_()
        with self._precision.autocast():
            fake = adversary(judged, seen)
            generator = weights.adv * adversary.generator_loss(fake)
        if self._plain:
            torch.autograd.backward(loss + generator)
        else:
            (pull,) = torch.autograd.grad(generator, judged, retain_graph=True)
            torch.autograd.backward(loss + (restored * pull).sum())
        self._critic_optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast():
            if self._plain:
                fake = adversary(restored.detach(), seen)
            critic = adversary.critic_loss(adversary(view.crop, seen), fake)
            penalty = adversary.penalty(view.crop, restored.detach(), seen)
            critic = critic if penalty is None else critic + penalty
        torch.autograd.backward(critic, inputs=list(adversary.parameters()))
        self._optimizer.step()
        self._critic_optimizer.step()
        self._follow()

    def _follow(self) -> None:
        """Let what follows the weights, a teacher, follow them."""
        if self._trio.discriminator is not None:
            self._trio.discriminator.after_step(self._progress)


def contiguous(batch: Batch) -> Batch:
    """Return the same batch with its images in row-major order."""
    views = (
        replace(
            view,
            pixels=view.crop.contiguous(),
            image=view.image.contiguous(),
            make_clean=view.clean.contiguous,
        )
        for view in batch.views
    )
    return replace(batch, views=tuple(views))
