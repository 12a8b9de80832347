"""The first difference between what a run computes and what it once left on disk, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dira_core.parallel import entire
from dira_core.resume import Tensors
from dira_core.tensorfiles import plain

COMPUTED = ("step", "salt", "optimizers", "precision")
"""What of a checkpoint's state the trainer computes."""


class Found(Exception):  # noqa: N818 - what is looked for is no error yet
    """The first difference: what, after which step, how large."""


def compare_metrics(here: Mapping[str, float], there: Mapping[str, Any], step: int) -> None:
    """Raise `Found` for the first metric of a step that is another number."""
    for name in here:
        if there.get(name) is not None and here[name] != there[name]:
            off = abs(here[name] - there[name])
            raise Found(
                f"{name} of step {step} is {here[name]!r} here and {there[name]!r} in "
                f"metrics.jsonl, {off:.1e} apart"
            )


def compare_tensors(here: Tensors, there: Tensors, step: int) -> int:
    """Return how many tensors were compared; raise `Found` for the first with other bits."""
    count = 0
    for file, group in here.items():
        if unlike := group.keys() ^ there[file].keys():
            raise Found(f"{min(unlike)} in the {file} of step {step} is on one side only")
        for name, tensor in group.items():
            count += 1
            if how := difference(plain(entire(tensor)), there[file][name]):
                raise Found(f"{name} in the {file} of step {step} {how}")
    return count


def difference(here: Tensor, there: Tensor) -> str:
    """Say how two tensors differ, or return an empty string where every bit is the same."""
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return f"is {here.dtype} {[*here.shape]} here, {there.dtype} {[*there.shape]} there"
    if torch.equal(here.view(-1).view(torch.uint8), there.reshape(-1).view(torch.uint8)):
        return ""
    off = (here.double() - there.double()).abs()
    return f"differs in {int((off != 0).sum())} of {off.numel()} values, by at most {off.max():.1e}"


def compare_states(here: Mapping[str, Any], there: Mapping[str, Any], step: int) -> None:
    """Raise `Found` for the first part of the trainer's plain state that is another one."""
    for key in COMPUTED:
        if json.loads(json.dumps(here[key])) != there[key]:
            raise Found(f"{key} in the state of step {step} differs")
