"""Numbers that tell images and patients from one another, and say nothing else of them.

Each is the first 8 bytes of a SHA-256, as a signed integer: among a million images that were seen
and 100,000 that are asked about, one is taken for another by chance once in 100 million times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def of_bytes(data: bytes) -> int:
    """Return the number of some bytes."""
    return _number(hashlib.sha256(data).digest())


def of_files(paths: Sequence[Path]) -> int | None:
    """Return the number of what several files hold together, whatever their names and order.

    Of one file it is that of its bytes; None if one of them cannot be read, or there is none.
    """
    try:
        found = sorted(_sha256(path) for path in paths)
    except OSError:
        return None
    if len(found) > 1:
        return of_bytes(b"".join(found))
    return _number(found[0]) if found else None


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def of_pixels(pixels: np.ndarray) -> int:
    """Return the number of an image (C, *S): of its shape, type and values."""
    shape = f"{pixels.dtype.str} {pixels.shape} ".encode()
    return of_bytes(shape + np.ascontiguousarray(pixels).tobytes())


def of_texts(texts: list[str]) -> np.ndarray:
    """Return the numbers of texts such as patients' ids, (N,) int64, -1 of no text.

    Of the 8 bytes the lower 62 bits: positive, and with room above for who counts on from them.
    """
    known = {text: of_bytes(text.encode()) & (2**62 - 1) for text in set(texts)}
    return np.array([known[text] if text else -1 for text in texts], np.int64)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)
