"""A backbone and the roles that train it, and what of them is one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dira_core.contracts import (
    demand,
    groups_flaw,
    objective_flaw,
    scalar_flaw,
    shape_flaw,
    sharing_flaw,
)
from dira_core.donor import Donor
from dira_core.encodings import Encodings
from dira_core.errors import RecipeError
from dira_core.roles import Adversary, Backbone, Discriminator, Restorer, trainable
from dira_core.types import Batch, Objective


@dataclass
class Trio:
    """A backbone and the roles that train it; any role but one may be absent.

    Attributes:
        donor: Gave them their initial weights; None where the seed did.
    """

    backbone: Backbone
    discriminator: Discriminator | None = None
    restorer: Restorer | None = None
    adversary: Adversary | None = None
    donor: Donor | None = None

    def check(self) -> None:
        """Raise a RecipeError unless there is something to train, and for a critic to judge."""
        if self.discriminator is None and self.restorer is None:
            raise RecipeError(
                "nothing to train: choose a discriminator (--disc) or a restorer (--res)"
            )
        if self.adversary is not None and self.restorer is None:
            raise RecipeError(
                "an adversary judges restored images: choose a restorer (--res) as well"
            )

    @property
    def n_views(self) -> int:
        """Views of an image the roles need."""
        compared = self.discriminator.n_views if self.discriminator else 1
        return max(compared, self.restorer.n_restored if self.restorer else 1)


@dataclass(frozen=True)
class Attempt:
    """What the model made of a batch."""

    objective: Objective | None
    restored: Tensor | None
    distance: Tensor | None


class Model(nn.Module):
    """Backbone, Discriminator and decoder: one forward pass computes all they need.

    Args:
        trio: The roles; its adversary is not part of the model.
        discriminator_sees: "image" (distorted) or "clean"; the Restorer always sees the image.
    """

    def __init__(self, trio: Trio, discriminator_sees: str = "image") -> None:
        super().__init__()
        self.backbone = trio.backbone
        self.discriminator = trio.discriminator
        self.restorer = trio.restorer
        self._sees = discriminator_sees

    def forward(self, batch: Batch) -> Attempt:
        """Embed and restore; a view is encoded once, unless the roles see different images.

        Raises:
            PluginError: A role returned something else than its contract says.
        """
        seen = Encodings(self.backbone, batch, self._sees)
        distorted = seen if self._sees == "image" else Encodings(self.backbone, batch)
        objective = watched(self.discriminator, seen) if self.discriminator else None
        if self.restorer is None:
            return Attempt(objective, None, None)
        restored, distances = [], []
        for view in range(self.restorer.n_restored):
            whole = self.restorer(distorted[view].pyramid)
            sides = batch.views[view].crop.shape  # a pyramid does not tell 75 px from 76
            restored.append(cut(whole, sides))
            demand(self.restorer, shape_flaw("forward", restored[-1], sides))
            distances.append(self.restorer.distance(restored[-1], batch.views[view]))
            demand(self.restorer, scalar_flaw("distance()", distances[-1]))
        return Attempt(objective, torch.cat(restored), torch.stack(distances).mean())

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups: the Discriminator's own, then backbone and decoder.

        Raises:
            PluginError: The Discriminator's leave a parameter out, or have one too many.
        """
        rest = [self.backbone, *([self.restorer] if self.restorer else [])]
        groups: list[dict[str, Any]] = []
        if self.discriminator is not None:
            demand(self.discriminator, sharing_flaw(self.discriminator, rest))
            demand(self.discriminator, groups_flaw(self.discriminator))
            groups = self.discriminator.param_groups()
        return [*groups, {"params": trainable(rest)}]


def cut(restored: Tensor, shape: Sequence[int]) -> Tensor:
    """Return restored images without the surplus at their far ends."""
    inside: tuple[Any, ...] = (..., *map(slice, shape[2:]))
    return restored[inside] if isinstance(restored, Tensor) else restored


def watched(discriminator: Discriminator, encodings: Encodings) -> Objective:
    """Return an objective whose embedding is for watching alone, with no graph behind it."""
    objective: Objective = discriminator(encodings)
    demand(discriminator, objective_flaw(objective))
    if objective.embedding is None:
        return objective
    return replace(objective, embedding=objective.embedding.detach())
