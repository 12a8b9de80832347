"""Numbers that tell images and patients from one another, and say nothing else of them.

Each is the first 8 bytes of a SHA-256, as a signed integer: among a million images that were seen
and 100,000 that are asked about, one is taken for another by chance once in 100 million times.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np


def of_bytes(data: bytes) -> int:
    """Return the number of some bytes."""
    return _number(hashlib.sha256(data))


def of_file(path: Path) -> int | None:
    """Return the number of a file's bytes, of a folder's files by name; None if it is not there."""
    try:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.is_file())
            return of_bytes(b"".join(hashlib.sha256(each.read_bytes()).digest() for each in inside))
        with path.open("rb") as file:
            return _number(hashlib.file_digest(file, "sha256"))
    except OSError:
        return None


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


def _number(digest: hashlib._Hash) -> int:
    return int.from_bytes(digest.digest()[:8], "big", signed=True)
