"""Files of arrays that appear whole, and are named where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dira_core import DataError, write_atomic


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of arrays.

    Raises:
        DataError: It is damaged, or not there.
    """
    try:
        file = safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{str(path)!r} is damaged ({error}): remove it and give the same command again"
        ) from error
    with file:
        yield file


def write_arrays(
    path: Path, arrays: dict[str, np.ndarray], texts: dict[str, str] | None = None
) -> None:
    """Write arrays to a file that appears whole or not at all."""
    solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, save(solid, texts))
