"""Tensors in safetensors files, on disk before anyone relies on them, read strictly."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dira_core.checkpoint_manifest import parse_json
from dira_core.files import sync

_LONGEST_HEADER = 100_000_000


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """Write tensors of any layout, shared or not, and wait until they are on disk.

    Args:
        path: Where to.
        tensors: By name.
        header: Text that travels with them.

    Raises:
        OSError: The file cannot be written; a full disk has its usual error number.
    """
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()  # the format refuses tensors that share memory
        storages.add(plain.untyped_storage().data_ptr())
        ready[name] = plain
    try:
        save_file(ready, path, header)
    except SafetensorError as error:
        # The library says "... (os error 28)" in its text alone.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    sync(path)


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
