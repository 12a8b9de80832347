"""Is it learning? Gradients at the backbone, and alarms with their likely cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

PATIENCE = 3
"""Measurements in a row that must look ill before an alarm is raised."""


def gradient_report(
    terms: Mapping[str, Tensor], parameters: Sequence[Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """Measure how hard each weighted objective pulls at the backbone, and whether they agree.

    Args:
        terms: Differentiable scalars, by name; their graphs are kept.
        parameters: Of the backbone.
        scale: By which terms are multiplied on the way, so that fp16 does not lose small gradients.

    Returns:
        "gradients/NAME": Euclidean norm of the gradient of each term; "gradients/cos_A_B": cosine
        between two of them, 0 where one vanishes.
    """
    flat: dict[str, Tensor] = {}
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        found = torch.autograd.grad(term * scale, parameters, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
        ]
        flat[name] = torch.cat([g.float().flatten() for g in filled]) / scale
    report = {f"gradients/{name}": g.norm() for name, g in flat.items()}
    for a, b in combinations(flat, 2):
        norms = (report[f"gradients/{a}"] * report[f"gradients/{b}"]).clamp_min(1e-30)
        report[f"gradients/cos_{a}_{b}"] = flat[a] @ flat[b] / norms
    return report


def restoration_report(restored: Tensor, target: Tensor, distorted: Tensor) -> dict[str, Tensor]:
    """Measure how good restored images (B, C, *S) are.

    Returns:
        "restoration/error": mean squared error to the target; "restoration/input_error": that of
        returning the distorted input; "restoration/spread": standard deviation of restored images
        around their mean image, over that of the targets (1 is healthy, 0: all are the mean image);
        of one image there is none.
    """
    restored, target, distorted = restored.float(), target.float(), distorted.float()
    report = {
        "restoration/error": (restored - target).square().mean(),
        "restoration/input_error": (distorted - target).square().mean(),
    }
    if len(target) > 1:
        spread = [(x - x.mean(0)).square().mean().sqrt() for x in (restored, target)]
        report["restoration/spread"] = spread[0] / spread[1].clamp_min(1e-12)
    return report


@dataclass(frozen=True)
class Ill:
    """A sign of illness: the metric, when it is ill, what that means and what to try.

    Attributes:
        below: The metric is ill below this; unless it is negative, as losses of a WGAN are.
        times_first: And above so many times its first measurement.
    """

    name: str
    metric: str
    says: str
    cause: str
    remedy: str
    below: float = -math.inf
    times_first: float = math.inf

    def ails(self, value: float, first: float) -> str | None:
        """Return what is ill about a value, or None."""
        if 0 <= value < self.below:
            return f"{self.metric} is {value:.3g}, below {self.below:g}"
        if first > 0 and value > self.times_first * first:
            return (
                f"{self.metric} is {value:.3g}, more than {self.times_first:g} times the "
                f"{first:.3g} of the first measurement"
            )
        return None


SIGNS = (
    Ill(
        "loss-spike",
        "losses/res",
        "restored images are worse than those of the untrained network",
        "the learning rate is too large",
        "a smaller optimizer.lr, a longer warm-up, or optimizer.clip",
        times_first=2,
    ),
    Ill(
        "collapse",
        "embedding/std",
        "embeddings hardly differ between images",
        "the discriminator collapsed to a constant",
        "a smaller learning rate, a larger batch, or stronger views",
        below=0.1,
    ),
    Ill(
        "collapse-rank",
        "embedding/rank",
        "embeddings lie on a line",
        "the discriminator collapsed to one dimension",
        "a smaller learning rate, a larger batch, or stronger views",
        below=1.5,
    ),
    Ill(
        "critic-won",
        "losses/critic",
        "the critic tells every restored image from a real one",
        "restored images no longer get a useful gradient from it",
        "a smaller critic_optimizer.lr, or a restorer trained longer before the critic joins",
        below=1e-3,
    ),
    Ill(
        "restored-is-the-mean",
        "restoration/spread",
        "restored images hardly differ between inputs",
        "the restorer returns the mean image",
        "a larger weights.res or learning rate, or milder distortions",
        below=0.05,
    ),
)


@dataclass(frozen=True)
class Alarm:
    """What is wrong, since which step, why probably, and what to try."""

    name: str
    since: int
    message: str


class Health:
    """Turn measurements into alarms: a sign of illness must last to count, and counts once.

    The restorer starts out returning nearly the mean image, so measurements of the first tenth of
    a run raise nothing.
    """

    def __init__(self) -> None:
        self._ill_since: dict[str, list[int]] = {}
        self._first: dict[str, float] = {}

    def check(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Return the alarms that the measurements of a step raise."""
        alarms = []
        for sign in SIGNS:
            if sign.metric not in metrics:
                continue
            first = self._first.setdefault(sign.metric, metrics[sign.metric])
            if step < total_steps / 10:
                continue
            steps = self._ill_since.setdefault(sign.name, [])
            if (ails := sign.ails(metrics[sign.metric], first)) is None:
                steps.clear()
                continue
            steps.append(step)
            if len(steps) == PATIENCE:
                message = (
                    f"{sign.name}: {sign.says} ({ails}, since step {steps[0]}); "
                    f"likely {sign.cause}; try {sign.remedy}"
                )
                alarms.append(Alarm(sign.name, steps[0], message))
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """Return how long each sign has lasted, and the first measurements."""
        since = {name: list(steps) for name, steps in self._ill_since.items()}
        return {"ill_since": since, "first": dict(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting."""
        self._ill_since = {name: list(steps) for name, steps in state["ill_since"].items()}
        self._first = dict(state["first"])
