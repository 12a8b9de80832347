"""Two processes that compute together, for tests of what a run of several processes does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from parts import forked
from safetensors.torch import load_file, save_file
from torch import Tensor

WORLD = 2


def together(folder: Path, work: Callable[[int], Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Run `work(rank)` in two processes joined by gloo; return what each of them returned."""

    def member(rank: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
        )
        found = {name: value.detach().contiguous() for name, value in work(rank).items()}
        dist.destroy_process_group()
        save_file(found, folder / f"{rank}.safetensors")

    members = [forked(lambda rank=rank: member(rank)) for rank in range(WORLD)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in members]
    assert codes == [0] * WORLD
    return [load_file(folder / f"{rank}.safetensors") for rank in range(WORLD)]
