"""Who is to blame for an error in the middle of a run: a plugin, or too little memory."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from dira_core.distributed import rank, world_size
from dira_core.errors import DiraError, PeerError, PluginError, ResourceError
from dira_core.loading import said
from dira_core.peers import Where, lost_contact
from dira_core.plugins import BUILTINS, installed
from dira_core.settings import Train
from dira_core.signals import Preempted


@contextmanager
def blamed(where: Where, train: Callable[[], Train]) -> Iterator[None]:
    """Turn what goes wrong while parts work together into an error that says what to do.

    Costs nothing until then. What is nobody's fault but the engine's is left as it is.

    Args:
        where: This process stands.
        train: How many images a step has.

    Raises:
        PluginError: It was raised below a function of a plugin.
        ResourceError: Memory ran out.
        PeerError: The GPU failed.
    """
    try:
        yield
    except (DiraError, Preempted):
        raise
    except Exception as error:
        if lost_contact(error):
            raise
        place = f"at {where()}" + (f" on rank {rank()}" if world_size() > 1 else "")
        if out_of_memory(error):
            raise ResourceError(f"no memory left {place}: {smaller(train())}") from error
        if isinstance(error, torch.AcceleratorError):
            raise PeerError(f"the GPU failed {place} ({said(error)}): see to it") from error
        if (blame := culprit(error)) is None:
            raise
        raise PluginError(
            f"{blame} raised {said(error)} {place}: report it to its authors, or choose another "
            "component"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on a GPU or on the host."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def smaller(train: Train) -> str:
    """Say how to need less memory: half of the batch is a guess, a rehearsal knows."""
    half = part_of_batch(train, train.batch_size // 2)
    guess = f"{half} may fit; " if train.batch_size > 1 else ""
    return f"{guess}`dira run --dry-run` with the same flags finds the largest batch that fits"


def part_of_batch(train: Train, batch_size: int) -> str:
    """Return the flags of a smaller batch, with the same global one where it can be divided."""
    parts, left = divmod(train.batch_size * train.accumulate, max(1, batch_size))
    same = "the same global batch" if not left else "nearly the same global batch"
    return f"--batch-size {batch_size} --set train.accumulate={parts} ({same})"


def culprit(error: Exception) -> str | None:
    """Return the innermost function of a plugin that an error came through, and whose it is."""
    calls = vars(installed().hook).values()
    packages = {
        impl.function.__module__.partition(".")[0]: impl.plugin_name
        for call in calls
        for impl in call.get_hookimpls()
        if impl.plugin_name != BUILTINS
    }
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if plugin := packages.get(_package(frame)):
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{line}"
            return f"the plugin {plugin!r}, in {code.co_qualname} ({place}),"
    return None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
