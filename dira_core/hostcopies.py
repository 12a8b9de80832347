"""Copies of tensors in host memory that is taken once and used again, save after save."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dira_core.errors import ResourceError
from dira_core.shards import Groups


class HostCopies:
    """Hold tensors still while training changes them: a save of them can take its time.

    A copy has the memory layout of its tensor, so that to make it is to copy memory; it is
    page-locked where the tensor is on a GPU.
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._held: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def take(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy tensors, by file and name, over the copies from before.

        Raises:
            ResourceError: There is no memory for the copies.
        """
        given = {(file, name): value for file in files for name, value in files[file].items()}
        self._files = list(files)
        self._held = {place: _room(self._held.get(place), given[place]) for place in given}
        if given:
            torch._foreach_copy_([*self._held.values()], [*given.values()], non_blocking=True)
        if any(tensor.is_cuda for tensor in given.values()):
            torch.cuda.synchronize()

    def plain(self) -> Groups:
        """Return the copies in row order; they are as they were taken until the next `take`."""
        groups: Groups = {file: {} for file in self._files}
        for (file, name), copy in self._held.items():
            groups[file][name] = _in_row_order(copy)
        return groups


def _room(held: Tensor | None, tensor: Tensor) -> Tensor:
    """Return memory for a copy: what is held, if it fits."""
    if held is not None and (held.shape, held.dtype, held.stride()) == (
        tensor.shape,
        tensor.dtype,
        tensor.stride(),
    ):
        return held
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    except RuntimeError as error:
        raise ResourceError(
            "no memory is left to copy what a checkpoint holds: save without copies, with "
            "--set checkpoint.background=false"
        ) from error


def _in_row_order(tensor: Tensor) -> Tensor:
    """Bring a copy's values into row order, in the memory they lie in."""
    if tensor.is_contiguous():
        return tensor
    values = tensor.contiguous()
    return tensor.as_strided(values.shape, values.stride()).copy_(values)
