"""The teacher against the closed form of an exponential moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dira_core import Teacher, rising_momentum
from dira_core.testing import TinyBackbone

M = 0.9


def student() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def images(size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def averages(history: list[dict[str, Tensor]], name: str) -> Tensor:
    """m^n first + sum over the later ones of (1 - m) m^(n - i) x_i, in float64."""
    n = len(history) - 1
    terms = [M**n * history[0][name].double()]
    terms += [(1 - M) * M ** (n - i) * history[i][name].double() for i in range(1, n + 1)]
    return torch.stack(terms).sum(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("average_norm", [False, True])
def test_it_starts_as_a_frozen_copy_that_shares_nothing(average_norm: bool) -> None:
    taught = student()
    teacher = Teacher([taught], average_norm=average_norm)
    assert not any(p.requires_grad for p in teacher.parameters())
    for own, theirs in zip(teacher.parameters(), taught.parameters(), strict=True):
        assert torch.equal(own, theirs)
        assert own.data_ptr() != theirs.data_ptr()
    assert all(p.requires_grad for p in taught.parameters())


def test_students_are_not_its_parts() -> None:
    taught = student()
    teacher = Teacher([taught])
    assert len(list(teacher.parameters())) == len(list(taught.parameters()))
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in taught.parameters()}


@pytest.mark.parametrize("average_norm", [False, True])
def test_after_n_updates_weights_are_the_closed_form_of_the_average(average_norm: bool) -> None:
    taught = student()
    teacher = Teacher([taught], average_norm=average_norm)
    history = [state(taught)]
    for _ in range(9):
        with torch.no_grad():
            for p in taught.parameters():
                p.add_(torch.randn_like(p))
        history.append(state(taught))
        teacher.update(M)
    for name, value in teacher[0].named_parameters():
        torch.testing.assert_close(value, averages(history, name).float())


def test_a_weight_that_two_students_share_moves_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    teacher = Teacher([nn.Sequential(first, second)])
    before = first.weight.detach().clone()
    with torch.no_grad():
        first.weight.add_(1)
    teacher.update(M)
    torch.testing.assert_close(next(teacher.parameters()), before + 1 - M)


def test_images_are_embedded_by_both_copies_without_a_gradient() -> None:
    backbone, projector = TinyBackbone(), nn.Linear(16, 3)
    given = torch.rand(2, 1, 16, 16)
    keys = Teacher([backbone, projector])(given)
    torch.testing.assert_close(keys, projector(backbone(given)[-1].mean((2, 3))))
    assert not keys.requires_grad


@pytest.mark.parametrize(("fraction", "expected"), [(0, 0.96), (0.5, 0.98), (2 / 3, 0.99), (1, 1)])
def test_a_rising_momentum_follows_the_first_half_of_a_cosine(
    fraction: float, expected: float
) -> None:
    assert rising_momentum(0.96, fraction) == pytest.approx(expected, abs=1e-12)


def test_averaged_statistics_are_those_of_the_first_batch_and_then_the_closed_form() -> None:
    taught = student()
    teacher = Teacher([taught], average_norm=True)
    hidden = teacher[0].get_submodule("0")(images(seed=9)).detach()
    teacher[0](images(seed=9))
    history = [{"mean": hidden.mean(0), "var": hidden.var(0)}]
    for step in range(9):
        taught(images(seed=step))
        norm = taught.get_submodule("1")
        history.append({"mean": norm.running_mean.clone(), "var": norm.running_var.clone()})
        teacher.update(M)
        teacher[0](images(seed=step))  # measures nothing
    norm = teacher[0].get_submodule("1")
    torch.testing.assert_close(norm.running_mean, averages(history, "mean").float())
    torch.testing.assert_close(norm.running_var, averages(history, "var").float())


def alone(teacher: Teacher, batch: Tensor) -> Tensor:
    return torch.cat([teacher[0](row) for row in batch.split(1)])


def test_with_averaged_statistics_a_key_does_not_depend_on_its_batch() -> None:
    teacher = Teacher([student()], average_norm=True)
    teacher[0](images(seed=9))
    torch.testing.assert_close(alone(teacher, images()), teacher[0](images()))
    teacher.update(M)
    teacher.train()
    torch.testing.assert_close(alone(teacher, images()), teacher[0](images()))


def test_with_statistics_of_the_batch_keys_are_what_the_student_would_say() -> None:
    taught = student()
    teacher = Teacher([taught])
    for seed in range(2):
        torch.testing.assert_close(teacher[0](images(seed=seed)), taught(images(seed=seed)))


def test_all_copies_measure_their_first_batch_even_after_each_other() -> None:
    teacher = Teacher([student(), nn.BatchNorm1d(3)], average_norm=True)
    inner = teacher[0](images())
    measured = state(teacher[0])
    teacher[0](images(seed=1))
    assert all(torch.equal(value, measured[name]) for name, value in state(teacher[0]).items())
    z = teacher[1](inner)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher[1].running_mean, inner.mean(0))
    teacher[1](teacher[0](images(seed=1)))
    torch.testing.assert_close(teacher[1].running_mean, inner.mean(0))


def test_statistics_that_came_with_the_student_are_not_measured_anew() -> None:
    taught = student()
    taught(images())
    teacher = Teacher([taught], average_norm=True)
    teacher[0](images(seed=1))
    assert torch.equal(teacher[0].get_submodule("1").running_mean, taught[1].running_mean)


@pytest.mark.parametrize("average_norm", [False, True])
def test_in_evaluation_nothing_is_written(average_norm: bool) -> None:
    teacher = Teacher([student()], average_norm=average_norm)
    teacher.eval()
    before = state(teacher)
    teacher[0](images())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("average_norm", [False, True])
def test_a_teacher_from_a_state_goes_on_as_the_one_it_was_taken_from(
    average_norm: bool, steps: int
) -> None:
    taught = student()
    teacher = Teacher([taught], average_norm=average_norm)

    def step(seed: int) -> Tensor:
        key: Tensor = teacher[0](images(seed=seed))
        taught(images(seed=seed))
        teacher.update(M)
        return key

    for seed in range(steps):
        step(seed)
    held, of_student = state(teacher), copy.deepcopy(taught)
    expected = step(10)
    taught = of_student
    teacher = Teacher([taught], average_norm=average_norm)
    teacher.load_state_dict(held)
    assert torch.equal(step(10), expected)
