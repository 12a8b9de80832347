"""Tensors whose rows lie on several processes (FSDP2): to files in pieces, and back in one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.distributed.tensor import DTensor

Groups = dict[str, dict[str, Tensor]]
"""Tensors by file and name."""


class Shard(BaseModel):
    """Where a piece belongs: the shape of the whole tensor, and the first of its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    shape: list[int] = Field(min_length=1)
    start: int = Field(ge=0)


Places = dict[str, dict[str, Shard]]
"""Where the pieces in each file belong, by file and name."""


def divided(groups: Mapping[str, Mapping[str, Tensor]], rank: int) -> tuple[Groups, Places, bool]:
    """Return what one process writes: its own pieces, and, the first one, all that is whole.

    Args:
        groups: Tensors by file stem ("model") and name; a whole one is the same on every process.
        rank: Of this process.

    Returns:
        Its tensors by file name, where those that are pieces belong, and whether any tensor lies in
        pieces: then every process writes.
    """
    files: Groups = {f"{stem}.safetensors": {} for stem in groups} if rank == 0 else {}
    places: Places = {}
    sharded = False
    for stem, group in groups.items():
        whole, own = f"{stem}.safetensors", f"{stem}.rank-{rank:05d}.safetensors"
        for name, tensor in group.items():
            rows = rows_here(tensor)
            sharded = sharded or rows is not None
            if rows is None:
                if rank == 0:
                    files[whole][name] = _local(tensor)
            elif rows:
                files.setdefault(own, {})[name] = _local(tensor)
                shard = Shard(shape=list(tensor.shape), start=rows.start)
                places.setdefault(own, {})[name] = shard
    return files, places, sharded


def joined(files: Mapping[str, Mapping[str, Tensor]], places: Places) -> Groups:
    """Put whole tensors together, by file stem and name.

    Args:
        files: Tensors by file name.
        places: Where the pieces belong.

    Raises:
        ValueError: Pieces are missing, too many, or do not fit.
    """
    groups = {
        name.removesuffix(".safetensors"): dict(tensors)
        for name, tensors in files.items()
        if name not in places
    }
    found: dict[tuple[str, str], list[tuple[Shard, Tensor]]] = {}
    for file, shards in places.items():
        if shards.keys() != files.get(file, {}).keys():
            raise ValueError(f"{file} does not hold the pieces that it should")
        for name, shard in shards.items():
            key = file.partition(".")[0], name
            found.setdefault(key, []).append((shard, files[file][name]))
    for (stem, name), parts in found.items():
        if name in groups.setdefault(stem, {}):
            raise ValueError(f"{name} is whole and in pieces")
        groups[stem][name] = _together(name, sorted(parts, key=lambda part: part[0].start))
    return groups


def like(whole: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor as this process holds `own`: as it is, or its own rows of it.

    Raises:
        ValueError: It lies in pieces, and the shapes differ.
    """
    if not isinstance(own, DTensor):
        return whole
    if whole.shape != own.shape:
        raise ValueError(f"shape {list(whole.shape)} in place of {list(own.shape)}")
    rows = rows_here(own)
    mine = whole if rows is None else whole[rows.start : rows.stop]
    return DTensor.from_local(
        mine.to(own.device),
        own.device_mesh,
        own.placements,
        run_check=False,
        shape=own.shape,
        stride=own.stride(),
    )


def rows_here(tensor: Tensor) -> range | None:
    """Return which rows of a tensor lie on this process, or None where all do."""
    if not isinstance(tensor, DTensor) or not tensor.placements[0].is_shard():
        return None
    assert tensor.device_mesh.ndim == 1, "tensors are sharded over one axis of processes"
    assert tensor.placements[0].is_shard(0), "tensors are sharded by rows"
    each = math.ceil(tensor.shape[0] / tensor.device_mesh.size())  # as torch.chunk does
    start = tensor.device_mesh.get_local_rank() * each
    rows = range(min(start, tensor.shape[0]), min(start + each, tensor.shape[0]))
    assert len(rows) == len(_local(tensor)), "rows are divided as torch.chunk does"
    return rows


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _together(name: str, parts: list[tuple[Shard, Tensor]]) -> Tensor:
    """Join pieces, in the order of their rows."""
    shape, rows = parts[0][0].shape, 0
    for shard, piece in parts:
        if shard.shape != shape or list(piece.shape[1:]) != shape[1:] or shard.start != rows:
            raise ValueError(f"the pieces of {name} do not fit together")
        rows += len(piece)
    if rows != shape[0] or len({piece.dtype for _, piece in parts}) > 1:
        raise ValueError(f"the pieces of {name} are not all of it")
    return torch.cat([piece for _, piece in parts])
