"""Tar shards wherever they are: found by a pattern, fetched when they are remote, read by range."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec

from dira_core.errors import DataError, DiraError, RecipeError, ResourceError, StorageError
from dira_core.escaping import printable
from dira_core.files import replacing

logger = logging.getLogger("dira")

MOST_SHARDS = 100_000
"""What a pattern may stand for at most."""

OPEN = 16
"""Shards kept open by a process."""

WAITS_S = (1, 5, 25)
"""Seconds to wait before a shard that cannot be reached is asked for again."""


class Shard(NamedTuple):
    """One tar file: where it is, and its size in bytes."""

    url: str
    size: int

    @property
    def name(self) -> str:
        """The last part of where it is."""
        return self.url.rpartition("/")[2]

    @property
    def home(self) -> str:
        """Where it is without that part."""
        return self.url.rpartition("/")[0] or "."


def names_of(shards: Sequence[Shard]) -> list[str]:
    """Return where shards are in the last folder that holds all of them: no two are alike."""
    alike = os.path.commonprefix([shard.url for shard in shards])  # noqa: RUF071  # cut below
    start = alike.rfind("/") + 1
    return [shard.url[start:] for shard in shards]


def find(pattern: str) -> list[Shard]:
    """Return the shards of a folder, a file or a pattern, sorted by where they are.

    Args:
        pattern: A path or an fsspec URL; `*`, `?`, `{a,b}` and `{000..012}` stand for others, but
            in a path that exists.

    Raises:
        DataError: There are none.
        StorageError: They cannot be reached.
        RecipeError: The URL needs a package that is not installed.
    """
    found: set[Shard] = set()
    for one in [pattern] if os.path.exists(pattern) else expanded(pattern):
        found.update(_remote(one) if "://" in one else _local(one))
    if not found:
        raise DataError(f"no .tar file at {printable(pattern)!r}: give a folder of shards, or one")
    return sorted(found)


def expanded(pattern: str) -> list[str]:
    """Return what the braces of a pattern stand for: `{a,b}`, `{0..9}`, with leading zeros kept."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends is None:
        values = found[1].split(",")
    else:
        first, last = (int(end) for end in ends.groups())
        if not 0 <= last - first < MOST_SHARDS:
            raise RecipeError(f"{found[0]} in a pattern of shards stands for none, or for too many")
        values = [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    pieces = (pattern[: found.start()] + value + pattern[found.end() :] for value in values)
    everything = list(itertools.islice(itertools.chain(*map(expanded, pieces)), MOST_SHARDS + 1))
    if len(everything) > MOST_SHARDS:
        raise RecipeError(f"{printable(pattern)!r} stands for more than {MOST_SHARDS} shards")
    return everything


def _local(pattern: str) -> Iterator[Shard]:
    path = Path(pattern)
    if path.is_dir():
        paths = sorted(path.glob("*.tar"))
    elif re.search(r"[*?]", pattern) and not path.exists():
        paths = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    else:
        paths = [path]
    for each in paths:
        if not each.is_file():
            raise DataError(f"no shard {printable(str(each))!r}: give existing ones")
        yield Shard(str(each), each.stat().st_size)


def _remote(pattern: str) -> Iterator[Shard]:
    with reaching(pattern):
        files, path = fsspec.core.url_to_fs(pattern)
        if not path.endswith(".tar"):
            path = f"{path.rstrip('/')}/*.tar"
        # a glob of a URL without a pattern finds nothing where nobody answers, and says no more
        for each in files.glob(path) if re.search(r"[*?]", path) else [path]:
            yield Shard(files.unstrip_protocol(each), int(files.info(each)["size"]))


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn whatever goes wrong on the way to a URL into an error that a user can mend.

    Raises:
        StorageError: It cannot be reached.
        DataError: It is not there.
        RecipeError: A package is missing, or nobody knows the protocol.
    """
    name = printable(url)
    try:
        yield
    except FileNotFoundError as error:
        # fsspec says so of a machine that does not answer, too
        if not isinstance(cause := error.__cause__, FileNotFoundError | None):
            raise _unreached(name, cause) from error
        raise DataError(f"nothing at {name!r}: give shards that are there") from error
    except (ImportError, ValueError) as error:
        raise RecipeError(f"{name!r} cannot be read ({error}): install what it needs") from error
    except DiraError:
        raise
    except Exception as error:  # every protocol raises its own
        raise _unreached(name, error) from error


def _unreached(name: str, error: BaseException) -> StorageError:
    return StorageError(
        f"{name!r} cannot be reached ({type(error).__name__}): try again later, then continue with "
        "--resume"
    )


@contextmanager
def reading(shard: Shard) -> Iterator[None]:
    """Say which shard it is that cannot be read.

    Raises:
        DataError: One cannot.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise DataError(f"shard {printable(shard.name)}: {reason}") from error


class ShardFiles:
    """Read ranges of shards; remote ones are fetched whole, and kept as long as there is room.

    Args:
        shards: By number.
        folder: Where copies of remote shards are kept, by all processes.
        limit: Bytes of copies that are kept.
    """

    def __init__(self, shards: Sequence[Shard], folder: Path, limit: int) -> None:
        self._shards = shards
        self._folder = folder
        self._limit = limit
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, number: int, start: int, length: int) -> bytes:
        """Return a range of a shard.

        Raises:
            DataError: It cannot be had.
        """
        shard = self._shards[number]
        with reading(shard):
            data = os.pread(self._descriptor(number), length, start)
        if len(data) != length:
            raise DataError(f"shard {printable(shard.name)} is cut short")
        return data

    def open(self, number: int) -> BinaryIO:
        """Open a shard.

        Raises:
            DataError: It cannot be had.
        """
        with reading(self._shards[number]):
            return os.fdopen(self._opened(self._shards[number]), "rb")

    def _descriptor(self, number: int) -> int:
        """Keep a shard open; those not read for longest are closed."""
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = self._opened(self._shards[number])
            if len(self._open) > OPEN:
                os.close(self._open.popitem(last=False)[1])
        return self._open[number]

    def _opened(self, shard: Shard) -> int:
        """Open a shard, or its copy; what another process then removes stays as it is."""
        if "://" not in shard.url:
            return os.open(shard.url, os.O_RDONLY)
        self._folder.mkdir(parents=True, exist_ok=True)
        known = hashlib.sha256(shard.url.encode()).hexdigest()[:16]
        path = self._folder / f"{known}-{shard.size}.tar"
        with _alone(path.with_suffix(".lock")):
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(descriptor)
                return descriptor
            for torn in self._folder.glob(f".{path.name}.*.tmp"):  # by a process that was killed
                torn.unlink()
            with _alone(self._folder / "room.lock"):
                make_room(self._folder, self._limit - shard.size)
            with replacing(path) as aside:
                fetch(shard, aside)
                if aside.stat().st_size != shard.size:
                    raise DataError(f"shard {printable(shard.name)} came in another size")
                return os.open(aside, os.O_RDONLY)


def fetch(shard: Shard, path: Path) -> None:
    """Copy a remote shard, asking again where it cannot be reached.

    Raises:
        StorageError: It cannot be reached for long.
        DataError: It is not there.
        ResourceError: There is no room for it.
    """
    for wait in (*WAITS_S, None):
        try:
            return _copy(shard, path)
        except StorageError:
            if wait is None:
                raise
            name = printable(shard.name)
            logger.warning("shard %s cannot be reached; asked for again in %d s", name, wait)
            time.sleep(wait)


def _copy(shard: Shard, path: Path) -> None:
    with reaching(shard.url), fsspec.open(shard.url) as there, path.open("wb") as here:
        while piece := there.read(2**22):
            try:
                here.write(piece)
                here.flush()
            except OSError as error:
                raise ResourceError(
                    f"no copy of shard {printable(shard.name)} can be kept in {path.parent} "
                    f"({error.strerror}): free {shard.size} bytes there, or set data.cache to "
                    "another folder"
                ) from error


def make_room(folder: Path, limit: int) -> None:
    """Remove copies of shards, those not read for longest first, until they take `limit` bytes."""
    copies = []
    for path in folder.glob("*.tar"):
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            known = path.stat()
            copies.append((known.st_mtime_ns, known.st_size, path))
    taken = sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if taken <= limit:
            return
        taken -= size
        path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
