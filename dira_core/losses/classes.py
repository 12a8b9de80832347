"""Tell classes apart: rotation, jigsaw puzzles, clusters."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dira_core.losses.arguments import in_float32
from dira_core.types import Objective


@in_float32
def classification(scores: Tensor, label: Tensor, weight: Tensor | None = None) -> Objective:
    """Tell each image's class: cross-entropy, mean over images, and as a metric the accuracy.

    Args:
        scores: Logits, (B, K).
        label: (B,) int64.
        weight: Factor on each image's loss, (B,); None: 1.
    """
    accuracy = (scores.argmax(1) == label).float().mean()
    if weight is None:
        return Objective(F.cross_entropy(scores, label), {"accuracy": accuracy})
    each = F.cross_entropy(scores, label, reduction="none")
    return Objective((weight * each).mean(), {"accuracy": accuracy})
