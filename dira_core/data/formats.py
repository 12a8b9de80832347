"""Tell what a file is by its first bytes, whatever it is called."""

from __future__ import annotations

import os
import re
from pathlib import Path

FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
FOREIGN = {
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP)",
    b"BM": "a BMP image",
    b"\0\0\0\x0cjP  ": "a bare JPEG 2000 image",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"<": "an HTML or XML page",
}
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
SUFFIXES |= {".dcm": "DICOM", ".dicom": "DICOM", ".nii": "NIfTI"}
SUFFIXES |= {".mha": "MetaImage", ".mhd": "MetaImage"}
GZIP = b"\x1f\x8b"
NIFTI = tuple(n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big"))
METAIMAGE = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|TransformType)\s*=")
READ = "PNG, JPEG, TIFF, DICOM, NIfTI and MetaImage"
HEAD = 132
"""Bytes that tell a format: DICOM says so after a preamble of 128."""


def is_volume(head: bytes) -> bool:
    """Say whether the first bytes of a file are those of NIfTI, of gzip or of MetaImage."""
    return head.startswith((GZIP, *NIFTI)) or METAIMAGE.match(head) is not None


def sniff(head: bytes) -> str | None:
    """Return the format of a file from its first `HEAD` bytes, or None.

    DICOM without a preamble starts with an element of group 2 or 8, low number first.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    for magic, name in FORMATS.items():
        if head.startswith(magic):
            return name
    bare = len(head) >= 12 and head[0] in (2, 8) and head[1] == 0 and head[3] == 0
    return "DICOM" if bare else None


def slices_of(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder by name, but for hidden ones and the index of a CD.

    Raises:
        OSError: The folder, or a file in it, cannot be read.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    files = (folder / name for name in names if name != "DICOMDIR")
    return [path for path in files if _head(path) == "DICOM"]


def _head(path: Path) -> str | None:
    with path.open("rb") as file:
        return sniff(file.read(HEAD))


def foreign(head: bytes) -> str:
    """Say what a file is that is none of the formats read."""
    if not head:
        return "empty file"
    for magic, name in FOREIGN.items():
        if head.lstrip().startswith(magic):
            return f"{name}; {READ} are read"
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "a text file, not an image" if text else f"not an image: {READ} are read"
