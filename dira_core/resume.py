"""All a run needs to continue as if it had never stopped: tensors, and plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dira_core.checkpoint import flatten_optimizer, unflatten_optimizer
from dira_core.errors import CheckpointError
from dira_core.optim import like_parameters
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

    Raises:
        CheckpointError: The state was captured from other modules.
    """
    for player in trainer.players:
        prefix = f"{player.name}."
        try:
            player.module.load_state_dict(_under(tensors["model"], prefix))
            held = _under(tensors["optimizer"], prefix)
            optimizer = unflatten_optimizer(held, state["optimizers"][player.name])
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


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
