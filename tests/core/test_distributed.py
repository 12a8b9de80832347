"""What processes know together, against the same rows in one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore
from world import WORLD, together

from dira_core import gather_rows, peers
from dira_core.distributed import (
    LAUNCHED,
    average,
    barrier,
    from_first,
    gathered,
    highest,
    launched,
    rank,
    sum_over_processes,
    world_size,
)
from dira_core.errors import DiraError, PeerError, ResourceError
from dira_core.peers import joined, peers_named


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_in_one_process_rows_are_returned_as_they_are() -> None:
    given = rows(3, 2)
    assert gather_rows(given) is given


def test_rows_are_joined_in_the_order_of_the_ranks_and_keep_their_type(tmp_path: Path) -> None:
    whole, index = rows(6, 2, 3), torch.arange(6)

    def work(rank: int) -> dict[str, Tensor]:
        mine = whole.chunk(WORLD)[rank].transpose(1, 2)
        return {"rows": gather_rows(mine), "index": gather_rows(index.chunk(WORLD)[rank])}

    for found in together(tmp_path, work):
        assert torch.equal(found["rows"], whole.transpose(1, 2))
        assert torch.equal(found["index"], index)


@pytest.mark.parametrize("same_loss", [False, True])
def test_gradients_averaged_over_processes_are_those_of_one(
    tmp_path: Path, same_loss: bool
) -> None:
    """The loss mixes rows of both processes, so that a gradient lost on the way shows."""
    whole, weight = rows(6, 4), rows(4, 4)

    def loss(z: Tensor) -> Tensor:
        return (z @ z.T).logsumexp(1).sum()

    def gradient(z_of: Tensor, gathered: bool) -> Tensor:
        w = weight.clone().requires_grad_()
        z = z_of @ w
        rows_of_all = gather_rows(z, same_loss=same_loss) if gathered else z
        (found,) = torch.autograd.grad(loss(rows_of_all), [w])
        return found

    def work(rank: int) -> dict[str, Tensor]:
        return {"gradient": gradient(whole.chunk(WORLD)[rank], gathered=True)}

    first, second = together(tmp_path, work)
    mean = (first["gradient"] + second["gradient"]) / 2
    torch.testing.assert_close(mean, gradient(whole, gathered=False))


def test_gradients_shared_with_another_tensor_are_not_written_to(tmp_path: Path) -> None:
    """A sum hands one and the same gradient to both of its terms."""

    def work(rank: int) -> dict[str, Tensor]:
        a, b = (rows(3, 2).requires_grad_() for _ in range(2))
        ((gather_rows(a) + gather_rows(b)) * rows(6, 2)).sum().backward()
        assert a.grad is not None
        assert b.grad is not None
        return {"a": a.grad, "b": b.grad}

    for found, own in zip(together(tmp_path, work), rows(6, 2).chunk(WORLD), strict=True):
        assert torch.equal(found["a"], WORLD * own)
        assert torch.equal(found["b"], WORLD * own)


def test_alone_everything_is_what_this_process_says() -> None:
    given = rows(3)
    before = given.clone()
    assert sum_over_processes(given) is given
    average([given])
    assert torch.equal(given, before)
    barrier()
    assert (rank(), world_size()) == (0, 1)
    assert highest(2, -1.5) == [2, -1.5]
    assert gathered({"a": [1]}) == [{"a": [1]}]
    assert from_first("x") == "x"


def test_sums_over_processes_and_their_gradients_are_those_of_one(tmp_path: Path) -> None:
    whole = rows(6, 4)

    def loss(z: Tensor, shared: bool) -> Tensor:
        total = z.sum(0)
        return (sum_over_processes(total) if shared else total).square().sum()

    def work(rank: int) -> dict[str, Tensor]:
        z = whole.chunk(WORLD)[rank].clone().requires_grad_()
        value = loss(z, shared=True)
        (gradient,) = torch.autograd.grad(value, [z])
        return {"loss": value, "gradient": gradient / WORLD}

    z = whole.clone().requires_grad_()
    expected = loss(z, shared=False)
    (gradient,) = torch.autograd.grad(expected, [z])
    found = together(tmp_path, work)
    for each, own in zip(found, gradient.chunk(WORLD), strict=True):
        torch.testing.assert_close(each["loss"], expected)
        torch.testing.assert_close(each["gradient"], own)


@pytest.mark.parametrize("exchange", ["gather", "sum"])
def test_gradients_of_gradients_are_those_of_one(tmp_path: Path, exchange: str) -> None:
    whole = rows(6, 4).double()

    def slope_and_its_pull(own: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
        own = own.clone().requires_grad_()
        if exchange == "gather":
            others = gather_rows(own) if shared else own
        else:
            total = own.sum(0, keepdim=True)
            others = sum_over_processes(total) if shared else total
        (slope,) = torch.autograd.grad((own @ others.T).tanh().sum(), own, create_graph=True)
        (pull,) = torch.autograd.grad(slope.square().sum(), own)
        return slope.detach(), pull

    def work(rank: int) -> dict[str, Tensor]:
        return dict(zip("sp", slope_and_its_pull(whole.chunk(WORLD)[rank], True), strict=True))

    expected = dict(zip("sp", slope_and_its_pull(whole, False), strict=True))
    found = together(tmp_path, work)
    for key, value in expected.items():
        torch.testing.assert_close(torch.cat([each[key] for each in found]), value)


def test_tensors_of_any_shape_are_averaged_in_place(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        a, b, c = (rank + 1) * rows(2, 3), rank * rows(5), rows()
        average([a.T, b, c])
        average([])
        return {"a": a, "b": b, "c": c}

    for found in together(tmp_path, work):
        expected = {"a": 1.5 * rows(2, 3), "b": 0.5 * rows(5), "c": rows()}
        torch.testing.assert_close(found, expected)


def test_the_highest_of_each_value_is_known_to_all(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        return {"highest": torch.tensor(highest(rank, -rank, False), dtype=torch.float64)}

    for found in together(tmp_path, work):
        assert found["highest"].tolist() == [1, 0, 0]


def test_json_of_any_length_is_gathered_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        everyone = gathered([None, "ü" * 300, {"a": 0.1}] if rank else [])
        assert everyone == [[], [None, "ü" * 300, {"a": 0.1}]]
        assert from_first(f"from {rank}") == "from 0"
        return {}

    together(tmp_path, work)


def test_a_process_that_died_is_named_and_where_it_was_missed(tmp_path: Path) -> None:
    def work(number: int) -> dict[str, Tensor]:
        barrier()
        if number == 1:
            os._exit(0)
        with pytest.raises(PeerError) as lost, peers_named(lambda: "step 7"):
            barrier()
        assert str(lost.value).startswith("rank 1 died or hangs at step 7, rank 0 has waited")
        (tmp_path / "named").touch()
        os._exit(0)

    with pytest.raises(FileNotFoundError):  # both leave without a result
        together(tmp_path, work)
    assert (tmp_path / "named").exists()


def test_where_the_store_died_with_its_machine_a_peer_is_still_what_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("localhost", server.port)
    monkeypatch.setattr(peers, "_store", lambda: store)
    del server
    with pytest.raises(PeerError) as lost, peers_named(lambda: "step 7"):
        raise RuntimeError("gloo: connection closed by peer")
    assert "store died or hangs at step 7, rank 0 has waited" in str(lost.value)


def test_other_errors_are_not_blamed_on_peers() -> None:
    with pytest.raises(RuntimeError, match="own"), peers_named(lambda: "step 7"):
        raise RuntimeError("own")


def test_a_process_that_nobody_launched_joins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    with joined(1):
        assert world_size() == 1
    for name in LAUNCHED:
        monkeypatch.setenv(name, "0")
    assert launched()


def test_more_processes_than_gpus_are_told_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in LAUNCHED:
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = "process 3 of this machine finds 2 GPUs.*--nproc 2.*CUDA_VISIBLE_DEVICES="
    with pytest.raises(ResourceError, match=said), joined(1):
        pass


@pytest.mark.parametrize("missing", sorted({*LAUNCHED} - {"WORLD_SIZE"}))
def test_one_of_several_processes_that_cannot_meet_the_others_does_not_train_alone(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in LAUNCHED:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv(missing, "")
    with pytest.raises(DiraError, match=f"WORLD_SIZE is 2, and {missing} .* unset WORLD_SIZE"):
        launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()
