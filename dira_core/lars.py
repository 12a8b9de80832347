"""LARS: stochastic gradient descent whose steps are in proportion to the weights they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


def trust_ratios(weights: list[Tensor], updates: list[Tensor], trust: float) -> Tensor:
    """Return the local rate of each tensor: trust ||w|| / ||u||, 1 where either norm is 0.

    Args:
        weights: n tensors w.
        updates: Gradient and weight decay of each, u = g + weight_decay w.
        trust: The trust coefficient, eta in the paper.

    Returns:
        (n,), on the device of the tensors.
    """
    w, u = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
    return torch.where((w > 0) & (u > 0), trust * w / u, 1.0)


class LARS(torch.optim.Optimizer):
    """Scale the update of each tensor to its own size, then take a step with momentum.

    Source: You et al., "Large Batch Training of Convolutional Networks", arXiv:1708.03888,
    algorithm 1, as the public code of Barlow Twins has it: the local rate is applied before the
    momentum, the global one after it, and the norm in it is that of gradient and decay together
    (the paper adds up their two norms). A group with `adapt` false is neither scaled nor decayed:
    norms and biases. A step never waits for the device, and uses the gradients up: `.grad` holds
    the update after it.

    Args:
        params: Parameters or groups of them.
        lr: Global learning rate.
        momentum: Part of the last update that is kept.
        weight_decay: L2 penalty.
        trust: The trust coefficient, eta in the paper.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust": trust, "adapt": True})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step once; return the loss that `closure` computes, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = [p.grad for p in weights]
            momenta = [self._momentum(p) for p in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            if group["adapt"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                ratios = trust_ratios(weights, updates, group["trust"])
                torch._foreach_addcmul_(momenta, updates, ratios.unbind())
            else:
                torch._foreach_add_(momenta, updates)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])
        return loss

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
