"""Health measures what it says, and alarms only at what lasts."""

from __future__ import annotations

import pytest
import torch

from dira_core.health import PATIENCE, Health, gradient_report, restoration_report


def test_gradient_norms_and_cosines_equal_those_by_hand() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    terms = {"a": w[0] * 2, "b": w.sum(), "c": -w[0]}
    report = gradient_report(terms, [w])
    assert report["gradients/a"] == 2
    assert report["gradients/b"] == pytest.approx(2**0.5)
    assert report["gradients/cos_a_b"] == pytest.approx(1 / 2**0.5)
    assert report["gradients/cos_a_c"] == pytest.approx(-1)


def test_a_term_without_gradient_at_the_backbone_counts_as_zero() -> None:
    w, other = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    report = gradient_report({"a": w.sum(), "b": other.sum()}, [w])
    assert report["gradients/b"] == 0
    assert report["gradients/cos_a_b"] == 0


def test_measuring_gradients_leaves_the_backward_pass_and_grads_alone() -> None:
    w = torch.ones(2, requires_grad=True)
    loss = w.square().sum()
    gradient_report({"a": loss}, [w])
    assert w.grad is None
    loss.backward()
    assert torch.equal(w.grad, torch.full((2,), 2.0))


def test_small_gradients_come_through_half_precision_if_scaled() -> None:
    w = torch.rand(8, requires_grad=True)
    term = w.half().float().sum() * 1e-9
    assert gradient_report({"a": term}, [w])["gradients/a"] == 0
    found = gradient_report({"a": term}, [w], scale=2.0**16)["gradients/a"]
    assert found == pytest.approx(1e-9 * 8**0.5, rel=1e-3)


def test_the_spread_of_one_image_is_not_measured() -> None:
    assert "restoration/spread" not in restoration_report(*torch.rand(3, 1, 1, 6, 6))


def test_a_critic_whose_loss_may_be_negative_has_not_won_by_that() -> None:
    health = Health()
    wasserstein, won = ([{"losses/critic": value}] * PATIENCE for value in (-5.0, 1e-5))
    assert not any(health.check(step, 9, m) for step, m in enumerate(wasserstein, 1))
    assert any(health.check(step, 9, m) for step, m in enumerate(won, 1))


def test_restoration_errors_are_mean_squares_and_the_mean_image_has_no_spread() -> None:
    target, distorted = torch.rand(8, 1, 6, 6), torch.rand(8, 1, 6, 6)
    mean = target.mean(0).expand_as(target)
    report = restoration_report(mean, target, distorted)
    assert report["restoration/error"] == pytest.approx(float(((mean - target) ** 2).mean()))
    assert report["restoration/input_error"] == pytest.approx(
        float(((distorted - target) ** 2).mean())
    )
    assert report["restoration/spread"] == pytest.approx(0, abs=1e-6)
    assert restoration_report(target, target, distorted)["restoration/spread"] == pytest.approx(1)


def test_an_alarm_comes_once_after_lasting_and_says_since_when() -> None:
    health = Health()
    raised = [
        health.check(step, 100, {"embedding/std": 0.01}) for step in range(20, 20 + 2 * PATIENCE)
    ]
    flat = [alarm for alarms in raised for alarm in alarms]
    assert len(flat) == 1
    assert flat[0].name == "collapse"
    assert flat[0].since == 20
    assert "try" in flat[0].message


def test_a_recovery_in_between_starts_the_count_anew() -> None:
    health = Health()
    for step in range(20, 20 + PATIENCE - 1):
        assert not health.check(step, 100, {"embedding/std": 0.01})
    assert not health.check(30, 100, {"embedding/std": 0.9})
    assert not health.check(31, 100, {"embedding/std": 0.01})


def test_the_first_tenth_of_a_run_raises_nothing() -> None:
    health = Health()
    for step in range(10):
        assert not health.check(step, 100, {"restoration/spread": 0.0})


def test_a_restored_state_counts_on() -> None:
    health, again = Health(), Health()
    for step in range(20, 20 + PATIENCE - 1):
        health.check(step, 100, {"embedding/std": 0.01})
    again.load_state_dict(health.state_dict())
    assert [a.since for a in again.check(40, 100, {"embedding/std": 0.01})] == [20]
