"""Copies hold still, bit for bit, in memory that is used again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dira_core.errors import ResourceError
from dira_core.hostcopies import HostCopies


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    base = torch.randn(2, 3, 4, 5)
    return {
        "plain": base,
        "tied": base,
        "channels last": torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last),
        "volume": torch.randn(2, 3, 2, 3, 2).to(memory_format=torch.channels_last_3d),
        "slice": base[:, 1],
        "transposed": torch.randn(40, 30).T,
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(7),
        "half": torch.randn(5).bfloat16(),
        "nan": torch.tensor([float("nan"), -0.0]),
        "empty": torch.zeros(0, 2),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def changed(given: dict[str, Tensor]) -> None:
    """Change every tensor in place, as a step does."""
    for name, tensor in given.items():
        if name != "expanded":
            tensor.detach().add_(1)


def test_copies_are_the_tensors_bit_for_bit_whatever_happens_to_them() -> None:
    given, copies = tensors(), HostCopies()
    before = {name: bits(tensor) for name, tensor in given.items()}
    for _ in range(3):
        copies.take({"model": given, "nothing": {}})
        changed(given)
        held = copies.plain()
        assert held.keys() == {"model", "nothing"}
        assert {name: bits(copy) for name, copy in held["model"].items()} == before
        assert all(copy.is_contiguous() for copy in held["model"].values())
        assert not any(copy.requires_grad for copy in held["model"].values())
        before = {name: bits(tensor) for name, tensor in given.items()}


def test_files_that_keep_still_are_copied_when_asked_to() -> None:
    given, copies = tensors(), HostCopies()
    copy_rest = copies.take({"model": given, "optimizer": {"m": given["half"]}}, ["optimizer"])
    given["half"].add_(1)
    before = bits(given["half"])
    copy_rest()
    changed(given)
    held = copies.plain()
    assert bits(held["optimizer"]["m"]) == before
    assert bits(held["model"]["half"]) != before


def test_copies_are_the_same_however_often_they_are_asked_for() -> None:
    given, copies = tensors(), HostCopies()
    copies.take({"model": given})
    for _ in range(2):
        held = copies.plain()["model"]
        assert {name: bits(copy) for name, copy in held.items()} == {
            name: bits(tensor) for name, tensor in given.items()
        }


def test_memory_is_taken_once() -> None:
    given, copies = tensors(), HostCopies()
    del given["slice"], given["expanded"]  # of odd layouts, which nothing that is trained has
    copies.take({"model": given})
    places = {name: copy.data_ptr() for name, copy in copies.plain()["model"].items()}
    copies.take({"model": given})
    assert places == {name: copy.data_ptr() for name, copy in copies.plain()["model"].items()}
    assert len(set(places.values())) == len(places)


def test_a_copy_has_the_layout_of_its_tensor_so_that_to_make_it_is_to_copy_memory() -> None:
    copies = HostCopies()
    given = tensors()["channels last"]
    copies.take({"model": {"x": given}})
    [held] = copies._held.values()
    assert held.stride() == given.stride()


def test_tensors_may_come_go_and_change_between_two_saves() -> None:
    copies = HostCopies()
    copies.take({"a": {"x": torch.ones(2), "y": torch.ones(3)}, "b": {}})
    copies.take({"a": {"x": torch.zeros(4), "z": torch.ones(1, dtype=torch.int64)}})
    held = copies.plain()
    assert held.keys() == {"a"}
    assert torch.equal(held["a"]["x"], torch.zeros(4))
    assert torch.equal(held["a"]["z"], torch.ones(1, dtype=torch.int64))
    assert held["a"].keys() == {"x", "z"}


def test_without_memory_for_copies_the_error_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object) -> np.ndarray:
        raise MemoryError("Unable to allocate 8.00 EiB")

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(ResourceError, match=r"--set checkpoint.background=false"):
        HostCopies().take({"model": {"x": torch.ones(2)}})
