"""The TensorBoard Tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dira_core import PluginError, Tracker

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter


def writer_class() -> type[SummaryWriter]:
    """Return torch's writer of event files.

    Raises:
        PluginError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PluginError(
            "the tracker 'tensorboard' needs tensorboard, which is not installed: "
            "pip install 'dira-ssl[tensorboard]'"
        ) from error
    return SummaryWriter


class TensorBoard(Tracker):
    """Write metrics and pictures as event files.

    A run that resumed or was rolled back repeats steps: what an earlier event file says of them
    is marked as void, so that no step shows twice.

    Args:
        writer_class: torch's SummaryWriter.
        folder: Where the event files go.
    """

    def __init__(self, writer_class: type[SummaryWriter], folder: Path) -> None:
        self._writer_class = writer_class
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._step = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        writer = self._writer_at(step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        writer = self._writer_at(step)
        for name, picture in images.items():
            writer.add_image(name, picture, step, dataformats="HWC"[: picture.ndim])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _writer_at(self, step: int) -> SummaryWriter:
        if self._writer is None or step < self._step:
            self.close()
            self._writer = self._writer_class(str(self._folder), purge_step=step)
        self._step = step
        return self._writer
