"""InfoNCE and NT-Xent against equation 1 written plainly, lightly, and hard cases."""

from __future__ import annotations

import math

import pytest
import torch
from tensors import Largest, randn, units
from torch import Tensor
from torch.nn import functional as F

from dira_core import info_nce, nt_xent
from dira_core.losses import contrast


def equation_1_of_moco(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float
) -> float:
    total = 0.0
    for q, k in zip(queries.tolist(), keys.tolist(), strict=True):
        others = [math.exp(dot(q, n) / temperature) for n in negatives.tolist()]
        positive = math.exp(dot(q, k) / temperature)
        total -= math.log(positive / (positive + sum(others)))
    return total / len(queries)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def published(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ negatives.T], 1)
    return F.cross_entropy(logits / temperature, torch.zeros(len(logits), dtype=torch.long))


def case(batch: int, size: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, negatives = (
        units(n, dim, seed=seed) for seed, n in enumerate((batch, batch, size))
    )
    return queries.requires_grad_(), keys, negatives


def gradient(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([g.double() for g in torch.autograd.grad(loss, inputs)])


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 7), (2, 1), (5, 12), (3, 13)])
def test_info_nce_is_equation_1_of_moco_in_value_and_gradient(
    batch: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "BLOCK", 4)
    queries, keys, negatives = case(batch, size)
    loss = info_nce(queries, keys, negatives, 0.2)
    assert loss.item() == pytest.approx(equation_1_of_moco(queries, keys, negatives, 0.2))
    wanted = gradient(published(queries, keys, negatives, 0.2), queries)
    torch.testing.assert_close(gradient(loss, queries), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.07, 1.0])
def test_info_nce_in_float32_is_exact_over_thousands_of_negatives(temperature: float) -> None:
    queries, keys, negatives = (tensor.detach().float() for tensor in case(7, 9001, dim=16))
    raised = queries.double().requires_grad_()
    exact = published(raised, keys.double(), negatives.double(), temperature)
    loss = info_nce(queries.requires_grad_(), keys, negatives, temperature)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    wanted = gradient(exact, raised)
    assert (gradient(loss, queries) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_info_nce_is_lightly_s_loss_with_a_memory_bank(batch: int) -> None:
    lightly = pytest.importorskip("lightly.loss")
    queries, keys, negatives = case(batch, 11)
    oracle = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(11, 4))
    oracle.memory_bank.bank = negatives.clone()
    oracle.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    wanted = oracle(queries, keys)
    loss = info_nce(queries, keys, negatives, 0.2)
    torch.testing.assert_close(loss, wanted)
    # lightly normalises once more, which takes the part along the query out of its gradient
    got = gradient(loss, queries)
    got = got - (got * queries).sum(1, keepdim=True) * queries
    torch.testing.assert_close(got, gradient(wanted, queries))


def test_a_query_s_own_old_keys_are_no_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "BLOCK", 4)
    queries, keys, negatives = case(3, 11)
    own = randn(3, 11, seed=5) > 0
    loss = info_nce(queries, keys, negatives, 0.2, own)
    rows = [
        published(queries[i : i + 1], keys[i : i + 1], negatives[~own[i]], 0.2) for i in range(3)
    ]
    wanted = torch.stack(rows).mean()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient(loss, queries), gradient(wanted, queries))
    assert torch.autograd.gradcheck(lambda q: info_nce(q, keys, negatives, 0.2, own), (queries,))


def test_a_query_without_negatives_has_no_loss_and_pulls_nothing() -> None:
    queries, keys, negatives = case(3, 5)
    own = torch.zeros(3, 5, dtype=torch.bool)
    own[1] = True
    loss = info_nce(queries, keys, negatives, 0.2, own)
    pulls = gradient(loss, queries)
    assert not pulls[1].any()
    assert pulls[0].any()
    others = published(queries[[0, 2]], keys[[0, 2]], negatives, 0.2)
    torch.testing.assert_close(loss, others * 2 / 3)
    assert info_nce(queries, keys, negatives, 0.2, torch.ones_like(own)).item() == 0


def test_all_queries_of_an_image_leave_out_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "BLOCK", 4)
    queries, keys = (units(3, 5, 4, seed=seed) for seed in range(2))
    negatives, own = units(11, 4, seed=2), randn(3, 11, seed=5) > 0
    loss = info_nce(queries.requires_grad_(), keys, negatives, 0.2, own)
    flat = queries.flatten(0, 1), keys.flatten(0, 1)
    wanted = info_nce(*flat, negatives, 0.2, own.repeat_interleave(5, 0))
    assert torch.equal(loss, wanted)
    assert torch.equal(gradient(loss, queries), gradient(wanted, queries))


def test_the_queue_may_move_on_before_the_backward_pass() -> None:
    queries, keys, negatives = case(3, 9)
    wanted = gradient(info_nce(queries, keys, negatives, 0.2), queries)
    before = negatives.clone()
    loss = info_nce(queries, keys, negatives, 0.2)
    assert torch.equal(negatives, before)
    negatives[2:5] = units(3, 4, seed=7)
    keys.neg_()
    assert torch.equal(gradient(loss, queries), wanted)


def test_only_queries_get_a_gradient() -> None:
    queries, keys, negatives = (tensor.requires_grad_() for tensor in case(3, 9))
    torch.autograd.backward(info_nce(queries, keys, negatives, 0.2))
    assert queries.grad is not None
    assert keys.grad is None
    assert negatives.grad is None


def test_info_nce_keeps_its_digits_where_it_is_nearly_0() -> None:
    queries, negatives = units(3, 4).float(), -units(3, 4).float()
    raised = queries.double().requires_grad_()
    exact = published(raised, raised.detach(), negatives.double(), 0.07)
    loss = info_nce(queries.requires_grad_(), queries, negatives, 0.07)
    assert 0 < loss.item() < 1e-4
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(
        gradient(loss, queries), gradient(exact, raised), rtol=1e-5, atol=1e-9
    )


def test_info_nce_never_holds_all_similarities() -> None:
    queries, keys, negatives = case(64, 3 * contrast.BLOCK)
    with Largest() as seen:
        torch.autograd.backward(info_nce(queries, keys, negatives, 0.2))
    assert seen.numbers == 64 * contrast.BLOCK


@pytest.mark.parametrize(
    ("keys", "own"),
    [((1, 4), (3, 9)), ((3, 4), (1, 9)), ((3, 4), (3, 1)), ((3, 4), (9, 3)), ((3, 1, 4), (3, 9))],
)
def test_info_nce_refuses_to_broadcast(keys: tuple[int, ...], own: tuple[int, int]) -> None:
    queries, _, negatives = case(3, 9)
    with pytest.raises(ValueError, match="must"):
        info_nce(queries, units(*keys), negatives, 0.2, torch.zeros(own, dtype=torch.bool))


def equation_1_of_simclr(z1: Tensor, z2: Tensor, temperature: float) -> float:
    z = torch.cat([z1, z2]).tolist()
    n = len(z1)

    def likeness(i: int, j: int) -> float:
        cosine = dot(z[i], z[j]) / math.hypot(*z[i]) / math.hypot(*z[j])
        return math.exp(cosine / temperature)

    def loss(i: int) -> float:
        j = (i + n) % (2 * n)
        return -math.log(likeness(i, j) / sum(likeness(i, k) for k in range(2 * n) if k != i))

    return sum(loss(i) for i in range(2 * n)) / (2 * n)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_nt_xent_is_equation_1_of_simclr(batch: int) -> None:
    z1, z2 = randn(batch, 4, seed=1), randn(batch, 4, seed=2)
    wanted = equation_1_of_simclr(z1, z2, 0.5)
    assert nt_xent(z1, z2, 0.5).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_nt_xent_is_lightly_s_loss_in_value_and_gradients(batch: int) -> None:
    lightly = pytest.importorskip("lightly.loss")
    z1, z2 = randn(batch, 4, seed=1).requires_grad_(), randn(batch, 4, seed=2).requires_grad_()
    loss, wanted = nt_xent(z1, z2, 0.2), lightly.NTXentLoss(0.2)(z1, z2)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient(loss, z1, z2), gradient(wanted, z1, z2))


def test_one_image_alone_has_no_nt_xent() -> None:
    assert nt_xent(randn(1, 4, seed=1), randn(1, 4, seed=2), 0.2).item() == 0


def test_collapsed_embeddings_give_a_finite_nt_xent_and_gradient() -> None:
    z = torch.zeros(3, 4, requires_grad=True)
    loss = nt_xent(z, z, 0.2)
    assert loss.item() == pytest.approx(math.log(5))
    assert gradient(loss, z).isfinite().all()


def test_nt_xent_refuses_views_of_different_batches() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(2, 4\)"):
        nt_xent(randn(3, 4), randn(2, 4), 0.2)
