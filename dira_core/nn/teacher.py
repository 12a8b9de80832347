"""A slow copy of what is trained: the momentum encoder of MoCo, BYOL and their kin."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dira_core.encodings import pool


class Teacher(nn.Module):
    """Frozen copies of modules that follow them as an exponential moving average.

    Source: He et al., "Momentum Contrast", CVPR 2020, arXiv:1911.05722, eq. 2.

    Call the copies under `torch.no_grad()`, or the teacher itself where they are a backbone and its
    projector. In training their batch norms use the batch at hand and keep statistics of their own,
    unless `average_norm`: then they use running statistics, which are averaged like the weights
    (Cai et al., "Exponential Moving Average Normalization", CVPR
    2021, arXiv:2101.08482). No key can then be told by the statistics of its batch, which is what
    shuffling keys between processes (ShuffleBN) is for, at no price and in any number of processes.
    Where nobody has measured statistics yet, the first batch in training is used and measured: an
    average that starts at mean 0 and variance 1 gives all images one key for hundreds of steps.

    Args:
        students: What is copied, as it is now; not registered as submodules.
        average_norm: Whether batch norms use averaged statistics.
    """

    def __init__(self, students: Sequence[nn.Module], *, average_norm: bool = False) -> None:
        super().__init__()
        self._students = tuple(students)
        self._average_norm = average_norm
        self._measured = False
        self.copies = nn.ModuleList(copy.deepcopy(student) for student in students)
        self.requires_grad_(False)
        if average_norm:
            for norm in norms(self.copies):
                norm.momentum = None  # a first batch is not averaged with mean 0 and variance 1
        self.train()

    def __getitem__(self, number: int) -> nn.Module:
        """Return the copy of student `number`."""
        chosen = self.copies[number]
        if self._average_norm and self.training and not self._measured:
            chosen.train(not all(norm.num_batches_tracked for norm in norms(chosen)))
        return chosen

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed images with a copied backbone, and on its pooled features a projector: (B, D)."""
        embeddings: Tensor = self[1](pool(self[0](images)[-1]))
        return embeddings

    def train(self, mode: bool = True) -> Teacher:
        """Switch to training; with `average_norm` the copies stay in evaluation mode."""
        super().train(mode)
        if self._average_norm:
            self.copies.eval()
        return self

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the copies: teacher = momentum * teacher + (1 - momentum) * student."""
        own, theirs = self._tensors(self.copies), self._tensors(self._students)
        torch._foreach_lerp_(own, theirs, 1 - momentum)
        if self._average_norm:
            self._measured = True  # spares the device a question at every step
            self.copies.eval()

    def _tensors(self, modules: Iterable[nn.Module]) -> list[Tensor]:
        """Return what is averaged, each once; `parameters()` would take a tenth of an update."""
        parts, found = list(modules), list[Tensor | None]()
        for part in parts:  # those within are appended while it runs
            found += part._parameters.values()
            if self._average_norm:
                found += (b for b in part._buffers.values() if b is None or b.is_floating_point())
            parts += (inner for inner in part._modules.values() if inner is not None)
        return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def rising_momentum(first: float, fraction: float) -> float:
    """Return a momentum that rises from `first` to 1 by a cosine: the teacher comes to rest.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733:
    1 - (1 - first) (cos(pi fraction) + 1) / 2.

    Args:
        first: Momentum at the start.
        fraction: Part of the run that is done.
    """
    left = (1 + math.cos(math.pi * fraction)) / 2
    return 1 - (1 - first) * left


def norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a module."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]
