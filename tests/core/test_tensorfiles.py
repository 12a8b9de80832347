"""Files of tensors: the library reads what is written here, and what comes back is compared."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dira_core import tensorfiles
from dira_core.tensorfiles import holds, pieces, plain, read_tensors, stream, write_tensors


def of_every_type() -> dict[str, Tensor]:
    """Return tensors of every type, size and layout, of which one is larger than a piece."""
    torch.manual_seed(0)
    given = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in tensorfiles._TYPES}
    given["large"] = torch.randn(1100, 1000)
    given["odd"] = torch.arange(7, dtype=torch.uint8)
    given["channels last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    given["transposed"] = torch.randn(300, 200).T
    given["tied"] = given["large"]
    given["expanded"] = torch.ones(1).expand(5)
    given["scalar"] = torch.tensor(7.0, requires_grad=True)
    given["empty"] = torch.zeros(0, 4)
    given['"\n../ä'] = torch.ones(2)
    return given


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor in row order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_library_reads_every_type_size_and_layout_bit_for_bit(tmp_path: Path) -> None:
    given = of_every_type()
    write_tensors(tmp_path / "a", given, {"about": 'ä "quoted"\n'})
    read = load_file(tmp_path / "a")
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(read[name]) == bits(tensor), name
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"about": 'ä "quoted"\n'}


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {})
    assert load_file(tmp_path / "a") == {}


def test_a_file_is_hardly_larger_than_its_tensors_and_numbers_lie_at_their_multiples(
    tmp_path: Path,
) -> None:
    given = of_every_type()
    write_tensors(tmp_path / "a", given)
    data = (tmp_path / "a").read_bytes()
    assert len(data) <= 1.001 * sum(t.nbytes for t in given.values())
    start = 8 + int.from_bytes(data[:8], "little")
    described = json.loads(data[8:start])
    assert start % 8 == 0
    for name, tensor in given.items():
        assert described[name]["data_offsets"][0] % tensor.element_size() == 0


def test_the_library_and_this_writer_write_the_same_numbers(tmp_path: Path) -> None:
    given = {name: plain(tensor).clone() for name, tensor in of_every_type().items()}
    save_file(given, tmp_path / "theirs")
    write_tensors(tmp_path / "ours", given)
    theirs, ours = read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert all(bits(theirs[name]) == bits(ours[name]) for name in theirs)


@pytest.mark.parametrize(
    "given", [{"a": torch.ones(2, dtype=torch.complex64)}, {"__metadata__": torch.ones(2)}]
)
def test_what_the_format_has_no_word_for_is_refused(
    tmp_path: Path, given: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="safetensors cannot hold"):
        write_tensors(tmp_path / "a", given)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(2)})

    def broken(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a", {"x": torch.zeros(9)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert torch.equal(load_file(tmp_path / "a")["x"], torch.ones(2))


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    given = {name: plain(tensor) for name, tensor in of_every_type().items()}
    entry = stream(tmp_path / "a", pieces(given))
    data = (tmp_path / "a").read_bytes()
    assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(pieces(given)) == data


def test_every_byte_that_is_read_back_counts(tmp_path: Path) -> None:
    given = {"x": torch.randn(40_000), "y": torch.arange(3)}
    path = tmp_path / "a"
    stream(path, pieces(given))
    data = path.read_bytes()
    assert holds(path, pieces(given))
    for changed in (
        *(data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :] for k in range(0, len(data), 9973)),
        data[:-1],
        data + b"\0",
        b"",
    ):
        path.write_bytes(changed)
        assert not holds(path, pieces(given))
