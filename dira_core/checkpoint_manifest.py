"""What a checkpoint holds, byte for byte: written last, checked before anything else is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dira_core.errors import CheckpointError
from dira_core.files import digest, write_synced

SCHEMA = 1
"""Layout of a checkpoint. Later ones must keep the seal, so that newer and damaged differ."""

NAME = "MANIFEST.json"
STATE = "state.json"
SHARDS = "shards.json"

_LARGEST = 2**20

FileName = Annotated[
    str,
    StringConstraints(pattern=r"^((state|shards)\.json|[a-z0-9_]+(\.rank-\d{5})?\.safetensors)$"),
]


class Entry(BaseModel):
    """One file: its size in bytes, and the sha256 of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Entry:
        """Describe a file of these bytes."""
        return cls(size=len(data), sha256=hashlib.sha256(data).hexdigest())


class Manifest(BaseModel):
    """Every file of a checkpoint, and what wrote it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int = SCHEMA
    step: int = Field(ge=0)
    versions: dict[str, str]
    recipe_digest: None = None  # a key of this schema that nothing was ever put into
    files: dict[FileName, Entry]


def folder_name(step: int) -> str:
    """Return what the checkpoint of a step is called: `step-00001200`."""
    return f"step-{step:08d}"


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, and wait until it is on disk."""
    write_synced(folder / NAME, _sealed(manifest.model_dump()))


def verify(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint whose every byte is as it was written.

    Raises:
        CheckpointError: A file is damaged, missing or too many, or the schema is another one.
    """
    manifest = verify_sizes(folder)
    try:
        with ThreadPoolExecutor(2) as pool:
            digests = pool.map(digest, [folder / name for name in manifest.files])
            found = dict(zip(manifest.files, digests, strict=True))
    except OSError as error:
        raise CheckpointError(f"{folder.name}: cannot be read ({error.strerror})") from error
    for name, entry in manifest.files.items():
        if found[name] != entry.sha256:
            raise CheckpointError(
                f"{folder.name}: {name} is damaged: its sha256 is not the one that was written"
            )
    return manifest


def verify_sizes(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint whose files are there in full, whatever is in them.

    Raises:
        CheckpointError: A file is missing, too many or of another size, the manifest is damaged, or
            the schema is another one.
    """
    try:
        manifest = _read(folder / NAME)
        _check_files(folder, manifest)
    except OSError as error:
        raise CheckpointError(f"{folder.name}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.name}: {error}") from error
    if folder.name != folder_name(manifest.step):
        raise CheckpointError(
            f"{folder.name}: intact, but its name should be {folder_name(manifest.step)}; rename it"
        )
    return manifest


def parse_json(data: bytes) -> dict[str, Any]:
    """Read a JSON object; a key given twice is an error.

    Raises:
        ValueError: It is not one.
        RecursionError: It is nested too deeply.
    """
    content = json.loads(data.decode(), object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def _sealed(content: Mapping[str, Any]) -> bytes:
    """Encode a manifest together with the digest of itself."""
    seal = hashlib.sha256(_encoded(content)).hexdigest()
    return _encoded({**content, "digest": seal})


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"


def _read(path: Path) -> Manifest:
    if not path.is_file():
        raise ValueError(f"{NAME} is missing")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{NAME} is damaged: larger than {_LARGEST} bytes")
    data = path.read_bytes()
    try:
        content = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{NAME} is damaged: no JSON") from error
    content.pop("digest", None)
    if _sealed(content) != data:
        raise ValueError(f"{NAME} is damaged: it does not have its own digest")
    version = content.get("schema_version")
    if version != SCHEMA:
        raise ValueError(
            f"written in schema {version!r}, this dira reads {SCHEMA}; use the dira that wrote it"
        )
    try:
        return Manifest.model_validate(content)
    except ValueError as error:
        raise ValueError(f"{NAME} does not follow schema {SCHEMA}") from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = {path.name for path in folder.iterdir()}
    expected = {*manifest.files, NAME}
    if missing := sorted({*expected, STATE} - present):
        raise ValueError(f"{', '.join(missing)} missing")
    if extra := sorted(present - expected):
        raise ValueError(f"{len(extra)} more files than the manifest names ({', '.join(extra)})")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is not a file")
        if path.stat().st_size != entry.size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, {entry.size} were written")
