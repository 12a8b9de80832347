"""Optimizers from a recipe, and learning rates as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dira_core.lars import LARS
from dira_core.optimizer_options import Optimizer as OptimizerOptions
from dira_core.parallel import entire
from dira_core.types import Progress


def lr_factor(progress: Progress, options: OptimizerOptions) -> float:
    """Return what the base rate is multiplied with in the step about to be taken.

    Linear from 1/n to 1 in the n steps of the warm-up; then constant, or halved every `half_life`
    epochs, or half a cosine from 1 down to `floor` (Loshchilov & Hutter, "SGDR", ICLR 2017,
    arXiv:1608.03983, eq. 5), which moves at every step, or only between epochs. A warm-up takes at
    most a quarter of a run: those of the papers are meant for hundreds of epochs.
    """
    step, total = progress.step, progress.total_steps
    warmup = round(min(options.warmup_epochs / max(1, progress.epochs), 0.25) * total)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "halving":
        return float(0.5 ** (progress.epoch // options.half_life))
    if options.schedule == "epoch-cosine":
        step = max(warmup, progress.epoch * total // max(1, progress.epochs))
    done = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return options.floor + (1 - options.floor) * cosine


def base_lr(options: OptimizerOptions, global_batch: int) -> float:
    """Return the rate for a global batch: the table's, if there is one, times the linear rule.

    Source of the linear rule: Goyal et al., "Accurate, Large Minibatch SGD", arXiv:1706.02677.
    """
    lr = options.lr
    if isinstance(lr, dict):
        lr = tabled_lr(lr, global_batch)
    return lr * (global_batch / options.lr_batch if options.lr_batch else 1.0)


def tabled_lr(table: Mapping[int, float], batch: int) -> float:
    """Interpolate a table of rates linearly in log2 of the batch; constant beyond its ends."""
    entries = sorted(table.items())
    logs, rates = [math.log2(size) for size, _ in entries], [rate for _, rate in entries]
    return float(np.interp(math.log2(batch), logs, rates))


def build_optimizer(
    groups: Iterable[dict[str, Any]], options: OptimizerOptions, global_batch: int
) -> torch.optim.Optimizer:
    """Build an optimizer over parameter groups as `Discriminator.param_groups` describes them.

    Every group remembers its `base_lr` and `schedule` ("run" or "constant") for `set_lr`. Where
    norms and biases are treated in a way of their own, they become a group before the others'.
    """
    lr = base_lr(options, global_batch)
    described = [part for group in groups for part in _parts(group, lr, options)]
    if options.name == "lars":
        return LARS(described, lr=lr, momentum=options.momentum, trust=options.trust)
    if options.name == "sgd":
        # torch 2.14 has no fused SGD of sharded weights
        fused = not any(isinstance(p, DTensor) for group in described for p in group["params"])
        sgd = torch.optim.SGD(described, lr=lr, momentum=options.momentum, fused=fused)
        # where fp16 overflows in the first step, its fused momentum would start from garbage
        sgd._step_supports_amp_scaling = False
        return sgd
    rule = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return rule(described, lr=lr, betas=options.betas, fused=True)


def _parts(
    group: Mapping[str, Any], lr: float, options: OptimizerOptions
) -> Iterator[dict[str, Any]]:
    """Yield a group as the rules know it, its norms and biases apart where that matters."""
    lars = options.name == "lars"
    apart = lars or not options.decay_1d or options.scale_1d != 1
    vectors: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in group["params"]:
        (vectors if apart and parameter.ndim < 2 else rest).append(parameter)
    rate = lr * group.get("lr_scale", 1.0)
    decay = group.get("weight_decay", options.weight_decay)
    decay_1d = decay if options.decay_1d and not lars else 0.0
    # the rest comes last: the rate of the last group is the one that is logged
    for params, scale, decays in ((vectors, options.scale_1d, decay_1d), (rest, 1.0, decay)):
        if params:
            yield {
                "params": params,
                "lr": rate * scale,
                "base_lr": rate * scale,
                "schedule": group.get("schedule", "run"),
                "weight_decay": decays,
                **({"adapt": params is rest} if lars else {}),
            }


def set_lr(optimizer: torch.optim.Optimizer, options: OptimizerOptions, progress: Progress) -> None:
    """Set every group's rate for the step about to be taken."""
    factor = lr_factor(progress, options)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (1.0 if group["schedule"] == "constant" else factor)


def like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give state tensors the memory layout of their parameter, as they have in an unbroken run."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together, a scalar in float32."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return entire(torch.stack(torch._foreach_norm(gradients)).norm())
