"""Optimizers from a recipe, and learning rates as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dira_core.recipe import Optimizer as OptimizerOptions
from dira_core.types import Progress


def lr_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Return what the base rate is multiplied with at a step.

    Linear from 1/warmup_steps to 1, then constant or half a cosine down to 0 (Loshchilov & Hutter,
    "SGDR", ICLR 2017, arXiv:1608.03983, eq. 5 with eta_min = 0).

    Args:
        step: Optimizer steps done, from 0.
        schedule: "cosine" or "constant".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def base_lr(options: OptimizerOptions, global_batch: int) -> float:
    """Return the rate for a global batch by the linear rule (Goyal et al., arXiv:1706.02677)."""
    return options.lr * (global_batch / options.lr_batch if options.lr_batch else 1.0)


def build_optimizer(
    groups: Iterable[dict[str, Any]], options: OptimizerOptions, global_batch: int
) -> torch.optim.Optimizer:
    """Build an optimizer over parameter groups as `Discriminator.param_groups` describes them.

    Every group remembers its `base_lr` and `schedule` ("run" or "constant") for `set_lr`.
    """
    lr = base_lr(options, global_batch)
    described = []
    for group in groups:
        scaled = lr * group.get("lr_scale", 1.0)
        described.append(
            {
                "params": list(group["params"]),
                "lr": scaled,
                "base_lr": scaled,
                "schedule": group.get("schedule", "run"),
                "weight_decay": group.get("weight_decay", options.weight_decay),
            }
        )
    described = [group for group in described if group["params"]]
    # on a CPU fused rules gain nothing and step even where fp16 overflowed
    fused = all(p.device.type == "cuda" for group in described for p in group["params"])
    if options.name == "sgd":
        return torch.optim.SGD(described, lr=lr, momentum=options.momentum, fused=fused)
    rule = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return rule(described, lr=lr, betas=options.betas, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, options: OptimizerOptions, progress: Progress) -> None:
    """Set every group's rate for the step about to be taken."""
    total = progress.total_steps
    warmup = round(options.warmup_epochs * total / max(1, progress.epochs))
    factor = lr_factor(progress.step, total, warmup, options.schedule)
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
    norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
    return norm
