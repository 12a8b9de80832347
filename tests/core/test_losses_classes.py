"""Classification against logarithms of probabilities written plainly."""

from __future__ import annotations

import math

import pytest
import torch
from tensors import randn

from dira_core import classification

LABEL = torch.tensor([2, 0, 0, 1])


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 0.0, 3.0]])
def test_the_loss_is_the_mean_of_minus_log_probability(weight: list[float] | None) -> None:
    scores = randn(4, 3).requires_grad_()
    given = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = 0.0
    for i, row in enumerate(scores.tolist()):
        probability = math.exp(row[LABEL[i]]) / sum(map(math.exp, row))
        expected -= math.log(probability) * (1 if weight is None else weight[i]) / 4
    assert classification(scores, LABEL, given).loss.item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda s: classification(s, LABEL, given).loss, (scores,))


def test_the_accuracy_is_the_part_whose_largest_score_is_right() -> None:
    scores = torch.tensor([[0, 1, 2], [5, 1, 2], [0, 1, 0], [0, 0, 3]], dtype=torch.float32)
    metrics = classification(scores, LABEL).metrics
    assert {name: value.item() for name, value in metrics.items()} == {"accuracy": 0.5}


def test_scores_of_half_precision_make_a_float32_loss_under_autocast() -> None:
    scores = randn(4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = classification(scores, LABEL).loss
    assert torch.equal(loss, classification(scores.float(), LABEL).loss)
