"""All a run needs to continue as if it had never stopped: tensors, and plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from dira_core.errors import CheckpointError
from dira_core.optim import like_parameters
from dira_core.optimizer_state import flatten_optimizer, unflatten_optimizer
from dira_core.shards import like
from dira_core.trainer import Trainer

Tensors = dict[str, dict[str, Tensor]]


def capture(trainer: Trainer) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors of a trainer by file ("model", "optimizer"), and the rest of its state."""
    tensors: Tensors = {"model": {}, "optimizer": {}}
    rest: dict[str, Any] = {}
    for player in trainer.players:
        for key, value in player.module.state_dict().items():
            tensors["model"][f"{player.name}.{key}"] = value
        held, rest[player.name] = flatten_optimizer(player.optimizer.state_dict())
        tensors["optimizer"].update({f"{player.name}.{key}": value for key, value in held.items()})
    state = {
        "step": trainer.step,
        "salt": trainer.salt,
        "optimizers": rest,
        "precision": trainer.precision.state_dict(),
    }
    return tensors, state


def restore(trainer: Trainer, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Put a captured state into a trainer that was built from the same recipe.

    Tensors are whole; where the trainer's lie in pieces on several processes, each takes its own.

    Raises:
        CheckpointError: The state was captured from other modules.
    """
    for player in trainer.players:
        prefix = f"{player.name}."
        try:
            own = player.module.state_dict()
            held = _under(tensors["model"], prefix)
            held = {k: like(v, own[k]) if k in own else v for k, v in held.items()}
            player.module.load_state_dict(held)
            held = _under(tensors["optimizer"], prefix)
            optimizer = unflatten_optimizer(held, state["optimizers"][player.name])
            _fit(optimizer, player.optimizer)
            player.optimizer.load_state_dict(optimizer)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the {player.name} of this recipe ({error}): "
                "resume with the recipe in its run folder"
            ) from error
        like_parameters(player.optimizer)
    trainer.precision.load_state_dict(dict(state["precision"]))
    trainer.step = state["step"]
    trainer.salt = state["salt"]


def inherit(trainer: Trainer, tensors: Tensors, roles: Collection[str]) -> None:
    """Put the weights of some roles, captured in another run, into a trainer.

    A role that either of the two runs does not have is left as it is.

    Args:
        trainer: About to start; its optimizers stay as they are.
        tensors: From `capture`.
        roles: What `Stage.inherit` says; backbone and decoder come by `init`.

    Raises:
        CheckpointError: The weights of a role are those of another component.
    """
    given = by_role(tensors["model"])
    for player in trainer.players:
        own = {f"{player.name}.{key}": value for key, value in player.module.state_dict().items()}
        for role, values in by_role(own).items():
            if role not in roles or role not in given:
                continue
            if {k: v.shape for k, v in values.items()} != {
                k: v.shape for k, v in given[role].items()
            }:
                raise CheckpointError(
                    f"the {role} before had other weights than this one: leave it out of `inherit`"
                )
            for key, value in values.items():
                value.copy_(like(given[role][key], value))


def by_role(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of players ("model.backbone.x", "critic.x") by role."""
    roles: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        player, _, rest = key.partition(".")
        role = "adversary" if player == "critic" else rest.partition(".")[0]
        roles.setdefault(role, {})[key] = value
    return roles


def _fit(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Leave of each parameter's state what lies on this process, as its parameter does.

    Whether a step is one fused kernel depends on how parameters lie as well: it is as it was built.
    """
    for group, own in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        if "fused" in own:
            group["fused"] = own["fused"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, state in state_dict["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameters[number].shape:
                state[name] = like(value, parameters[number])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
