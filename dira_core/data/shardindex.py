"""Where the samples of tar shards are: found by reading every header once, then kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dira_core.data.manifest import SYNONYMS
from dira_core.data.shardfiles import Shard, ShardFiles, names_of
from dira_core.digests import of_texts
from dira_core.errors import DataError, RecipeError
from dira_core.escaping import printable
from dira_core.source_options import IMAGE_SUFFIXES

HEADER = 512
"""Bytes of a member's header, right before its content."""

MOST_MEMBERS = 1_000_000
"""Of a shard."""

LARGEST = 2**30
"""Bytes of a sample."""

IMAGES = {suffix[1:] for suffix in IMAGE_SUFFIXES if suffix}
"""Endings of what may be the image of a sample."""


class Sample(NamedTuple):
    """One sample: a run of members with one key.

    Attributes:
        shard: Number of its shard.
        start: Where its first header is there.
        length: Bytes from there to the end of its last member.
        image: Where its image starts, counted from `start`.
        image_size: Bytes of the image.
        json: Where its JSON starts, counted from `start`.
        json_size: Bytes of the JSON; 0 without one.
        cls: Where the text of its class starts.
        cls_size: Bytes of that text; 0 without one.
        crc: CRC-32 of the image's header, by which another file is noticed.
        patient: Number of who it shows, as `Source.patients`; -1 of nobody.
    """

    shard: int
    start: int
    length: int
    image: int
    image_size: int
    json: int
    json_size: int
    cls: int
    cls_size: int
    crc: int
    patient: int


SAMPLE = np.dtype([(name, "<i8") for name in get_type_hints(Sample)])


@dataclass(frozen=True)
class ShardIndex:
    """The samples of some shards.

    Attributes:
        shards: Name as of `names_of`, size, and where the last member ends, of each.
        ending: Of the images that were looked for; None is any.
        samples: (N,) of `SAMPLE`, in the order of the shards.
        keys: What each sample is called, N.
    """

    shards: list[tuple[str, int, int]]
    ending: str | None
    samples: np.ndarray
    keys: list[str]

    def to_bytes(self) -> bytes:
        """Return the index as a safetensors file after its own digest."""
        known = {"shards": self.shards, "ending": self.ending, "keys": self.keys}
        texts = json.dumps(known).encode("ascii")
        table = self.samples.view(np.uint8).reshape(len(self.samples), SAMPLE.itemsize)
        data: bytes = save({"samples": table, "json": np.frombuffer(texts, np.uint8)})
        return hashlib.sha256(data).digest() + data

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are something else, or damaged.
        """
        digest, data = data[:32], data[32:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("another digest")
        try:
            arrays = load(data)
            texts = json.loads(arrays["json"].tobytes())
            shards = [(str(name), int(size), int(end)) for name, size, end in texts["shards"]]
            if arrays["samples"].shape[1:] != (SAMPLE.itemsize,):
                raise ValueError("of another version")
            samples = arrays["samples"].reshape(-1).view(SAMPLE)
            _check(samples, shards)
            return cls(shards, texts["ending"], samples, texts["keys"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"no index of shards: {error}") from error

    def of(self, shards: Sequence[Shard], ending: str | None) -> ShardIndex | None:
        """Return the part about some shards, or None if one of them is not in here, or another."""
        numbers = {(name, size): n for n, (name, size, _) in enumerate(self.shards)}
        named = zip(names_of(shards), shards, strict=True)
        wanted = [numbers.get((name, shard.size), -1) for name, shard in named]
        if ending != self.ending or -1 in wanted:
            return None
        rows = [np.flatnonzero(self.samples["shard"] == number) for number in wanted]
        samples = self.samples[np.concatenate(rows)]
        samples["shard"] = np.repeat(np.arange(len(wanted)), [len(each) for each in rows])
        keys = [self.keys[row] for each in rows for row in each.tolist()]
        return ShardIndex([self.shards[number] for number in wanted], ending, samples, keys)


def _check(samples: np.ndarray, shards: Sequence[tuple[str, int, int]]) -> None:
    """Raise ValueError where a table leads out of its shards, or to more than a sample may be."""
    at = {name: samples[name] for name in SAMPLE.names or ()}
    sizes = np.array([size for _, size, _ in shards])
    if (at["shard"] < 0).any() or (at["shard"] >= len(shards)).any():
        raise ValueError("no such shard")
    inside = (at["start"] >= 0) & (at["length"] <= LARGEST) & (at["image"] >= HEADER)
    inside &= at["start"] + at["length"] <= sizes[at["shard"]]
    for kind in ("image", "json", "cls"):
        inside &= (at[kind] >= 0) & (at[f"{kind}_size"] >= 0)
        inside &= at[kind] + at[f"{kind}_size"] <= at["length"]
    if not inside.all():
        raise ValueError("a sample outside of its shard")


Scan = tuple[np.ndarray, list[str], int]
"""What is in a shard: (n,) of `SAMPLE`, n keys, and where the last member ends."""


def index_of(shards: Sequence[Shard], files: ShardFiles, ending: str | None) -> ShardIndex:
    """Return the index of shards by a look at each of them; raises what `scan` does."""
    scans = [scan(files.open(n), shard, n, ending) for n, shard in enumerate(shards)]
    named = zip(names_of(shards), shards, scans, strict=True)
    known = [(name, shard.size, end) for name, shard, (_, _, end) in named]
    samples = np.concatenate([samples for samples, _, _ in scans])
    return ShardIndex(known, ending, samples, [key for _, keys, _ in scans for key in keys])


def scan(raw: BinaryIO, shard: Shard, number: int, ending: str | None) -> Scan:
    """Find the samples of a shard by its headers.

    Args:
        raw: The shard, open; closed at the end.
        shard: What it is called, for messages.
        number: Of the shard.
        ending: Of the image in a sample; by default the member that may be one.

    Returns:
        Its samples; those without an image are left out.

    Raises:
        DataError: It is no plain tar, cut short, or holds what no data set needs: links, devices,
            names that lead elsewhere, two members of one name.
        RecipeError: A sample has several images, and no ending is given.
    """
    name = printable(shard.name)
    try:
        with raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            found = [_sample(run, number, ending) for run in _runs(tar)]
            samples = [(key, sample) for key, sample in found if sample.image]
            table, end = [_marked(raw, sample) for _, sample in samples], tar.offset
            raw.seek(end)
            if raw.read(HEADER) != bytes(HEADER):
                raise tarfile.ReadError("no end")
    except tarfile.TarError as error:
        raise DataError(
            f"shard {name} is no plain tar file, or cut short ({error}): write it again"
        ) from error
    except OSError as error:
        raise DataError(f"shard {name}: {(error.strerror or 'unreadable').lower()}") from error
    except DataError as error:
        raise DataError(
            f"shard {name} {error}: write it again, with files alone and those of a sample together"
        ) from error
    return np.array(table, SAMPLE), [printable(key) for key, _ in samples], end


def _marked(file: BinaryIO, sample: Sample) -> Sample:
    file.seek(sample.start + sample.image - HEADER)
    crc = crc_of(file.read(HEADER))
    file.seek(sample.start + sample.json)
    return sample._replace(crc=crc, patient=_patient(known_of(file.read(sample.json_size))))


def known_of(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a sample; an empty one where it has none, or another thing."""
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _patient(known: Mapping[str, Any]) -> int:
    """Return the number of a patient: that which dira wrote, else that of an id, else -1."""
    own = known.get("dira")
    number = own.get("patient") if isinstance(own, dict) else None
    if isinstance(number, int) and -1 <= number < 2**63:
        return number
    cased = {key.casefold(): value for key, value in known.items()}
    found = next((cased[name] for name in SYNONYMS["patient"] if name in cased), None)
    known_as = str(found).strip() if type(found) in (str, int) else ""
    return int(of_texts([known_as])[0])


def crc_of(header: bytes) -> int:
    """Return the CRC-32 of a member's header."""
    return zlib.crc32(header)


class Member(NamedTuple):
    """A file of a shard: the key of its sample, how its name goes on, and where it is."""

    key: str
    ending: str
    header: int
    content: int
    size: int


def _runs(tar: tarfile.TarFile) -> Iterator[list[Member]]:
    """Yield the members of one sample after the other.

    Raises:
        DataError: A key comes back after another one.
    """
    known = set()
    for key, run in itertools.groupby(_members(tar), lambda member: member.key):
        if key in known:
            raise DataError(f"has members called {printable(key)!r} twice")
        known.add(key)
        yield list(run)


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """Yield the files of a shard; nothing is ever unpacked.

    Raises:
        DataError: It holds something else, or names that lead elsewhere.
    """
    for number in itertools.count():
        info = tar.next()
        if info is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]  # the module keeps them all
        path = PurePosixPath(info.name)
        if info.isdir() or path.name.startswith("._"):
            continue
        name = repr(printable(info.name)[:60])
        if not info.isreg() or info.issparse():
            raise DataError(f"has {name}, which is no plain file")
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise DataError(f"has {name}, a name that leads elsewhere")
        if number >= MOST_MEMBERS:
            raise DataError(f"has more than {MOST_MEMBERS} members")
        stem, _, ending = path.name.partition(".")
        key = str(path.with_name(stem)) if stem else info.name
        yield Member(key, ending.lower(), info.offset, info.offset_data, info.size)


def _sample(run: Sequence[Member], number: int, ending: str | None) -> tuple[str, Sample]:
    """Return the key of a sample and where it is; without an image, `image` is 0.

    Raises:
        DataError: Two of its members have one name, or it is too large.
        RecipeError: Several may be its image.
    """
    endings = [member.ending for member in run]
    if len(set(endings)) < len(endings):
        raise DataError(f"has members called {printable(run[0].key)!r} twice")
    images = [m for m in run if m.ending == ending or (ending is None and _may_be_image(m))]
    if len(images) > 1:
        one, other = (printable(f"{member.key}.{member.ending}") for member in images[:2])
        raise RecipeError(
            f"{one!r} and {other!r} in a shard are images of one sample, whose name ends at the "
            "first dot: set data.image to the ending of one, or write them without other dots"
        )
    chosen = {"image": images[0] if images else None}
    chosen |= {kind: next((m for m in run if m.ending == kind), None) for kind in ("json", "cls")}
    used = [member for member in chosen.values() if member is not None]
    start = min((member.header for member in used), default=0)
    length = max((member.content + member.size for member in used), default=0) - start
    if length > LARGEST:
        raise DataError(f"has a sample {printable(run[0].key)!r} of more than 1 GiB")
    places: dict[str, int] = {}
    for kind, member in chosen.items():
        places[kind] = 0 if member is None else member.content - start
        places[f"{kind}_size"] = 0 if member is None else member.size
    return run[0].key, Sample(shard=number, start=start, length=length, crc=0, patient=-1, **places)


def _may_be_image(member: Member) -> bool:
    return member.ending.rpartition(".")[2] in IMAGES
