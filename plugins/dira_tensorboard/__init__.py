"""TensorBoard: metrics and pictures of a run in its folder's `tb/`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Tracker

DIRA_API = 1


class TensorBoardOptions(Options):
    """TensorBoard has no options: it writes to `tb/` in the run folder."""


def build(options: TensorBoardOptions, folder: Path) -> Tracker:
    """Make a tracker that writes to a run folder."""
    from dira_tensorboard.tracker import TensorBoard, writer_class

    return TensorBoard(writer_class(), folder / "tb")


@hookimpl
def dira_trackers() -> Iterable[Component]:
    """Offer TensorBoard."""
    yield Component(
        "tensorboard",
        TensorBoardOptions,
        build,
        summary="metrics and pictures for TensorBoard, in the run folder's tb/",
    )
