"""Tensors in safetensors files, on disk before anyone relies on them, read strictly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dira_core.checkpoint_manifest import Entry, parse_json
from dira_core.files import replacing

_LONGEST_HEADER = 100_000_000
_PIECE = 2**22
_SMALL = 2**16

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls each type."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any layout, shared or not, whole or not at all, and wait for the disk.

    Args:
        path: Where to; a file that is there keeps its bytes until the new one is complete.
        tensors: By name.
        header: Text that travels with them.

    Raises:
        OSError: The file cannot be written; a full disk has its usual error number.
    """
    with replacing(path) as aside:
        stream(aside, pieces({name: plain(t) for name, t in tensors.items()}, header))


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor's values in row order on the CPU, copied only where they are not."""
    return tensor.detach().cpu().contiguous()


def pieces(
    tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """Yield the bytes of a safetensors file of plain tensors, without a copy of the large ones.

    Who writes a piece can hash it while it is in the processor's caches, and compare it with what
    reads back: the library's writer would leave two more passes over the file for that.

    Raises:
        ValueError: The format has no word for a type, or keeps a name for itself.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    small = bytearray(_head({name: tensors[name] for name in names}, header))
    for name in names:
        data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        if len(data) < _SMALL:
            small += data
            continue
        yield memoryview(small)
        small = bytearray()
        yield from (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
    yield memoryview(small)


def stream(path: Path, content: Iterable[memoryview]) -> Entry:
    """Write a new file and wait until it is on disk; interrupted, it may be torn.

    Returns:
        Its size and sha256, taken from memory while a core writes and another hashes.
    """
    size, digest = 0, hashlib.sha256()
    with ThreadPoolExecutor(1) as other, path.open("xb", buffering=0) as file:
        for piece in content:
            hashed = other.submit(digest.update, piece)
            left = piece
            while left:
                left = left[file.write(left) :]
            size += len(piece)
            hashed.result()
        os.fsync(file.fileno())
    return Entry(size=size, sha256=digest.hexdigest())


def holds(path: Path, content: Iterable[memoryview]) -> bool:
    """Say whether a file, read back, has exactly these bytes: at a fraction of a digest's price."""
    with path.open("rb", buffering=0) as file:
        for piece in content:
            found = file.read(len(piece))
            if not np.array_equal(np.frombuffer(found, np.uint8), np.frombuffer(piece, np.uint8)):
                return False
        return not file.read(1)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read every tensor of a file; a name given twice, which the library accepts, is an error.

    Raises:
        ValueError: The header is not one, or names a tensor twice.
        SafetensorError: The file breaks the format.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path.name} has a header of {length} bytes")
        parse_json(file.read(length))
    return load_file(path, device=device)


def _head(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None) -> bytes:
    """Return the length and text of a file's header; tensors follow in the order given."""
    content: dict[str, object] = {"__metadata__": dict(header)} if header else {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES or name == "__metadata__":
            raise ValueError(f"safetensors cannot hold {name!r} of type {tensor.dtype}")
        start, end = end, end + tensor.nbytes
        content[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers of 8 bytes lie at multiples of 8
    return len(text).to_bytes(8, "little") + text
