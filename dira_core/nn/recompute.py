"""Activation checkpointing: compute again what a segment of a network held, instead of keeping it.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(segments: Iterable[nn.Module]) -> None:
    """Let modules forget what they computed until the backward pass; gradients keep their bits."""
    for segment in segments:
        forgetful = partial(_forget, segment.forward, partial(_contexts, segment))
        setattr(segment, "forward", forgetful)  # noqa: B010 - a method, to the type checker


def _forget(forward: Callable[..., Any], contexts: Callable[[], Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():  # a compiled graph writes buffers once, whatever it repeats
        return checkpoint(forward, *inputs, use_reentrant=False)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(
    segment: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Unmeasured(segment)


class _Unmeasured(AbstractContextManager[None]):
    """Keep batch norms from counting a batch twice: lend them copies of what they count in.

    Entered anew by every backward pass through the segment: one for each objective, where their
    gradients are measured one by one.
    """

    def __init__(self, segment: nn.Module) -> None:
        self._segment = segment

    def __enter__(self) -> None:
        norms = [part for part in self._segment.modules() if isinstance(part, _BatchNorm)]
        self._counted = [(norm, *of_norm) for norm in norms for of_norm in norm.named_buffers()]
        for norm, name, value in self._counted:
            setattr(norm, name, value.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, value in self._counted:
            setattr(norm, name, value)
