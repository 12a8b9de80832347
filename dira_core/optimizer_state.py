"""The state of a torch optimizer as tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of a torch optimizer into tensors and JSON.

    Returns:
        The tensors by path, for example "state/0/exp_avg"; and the rest, in which each of them is
        {"tensor": path}, each dict {"dict": [[key, value], ...]} (torch keys states by integers)
        and each tuple {"tuple": [...]}.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {k: _flat(v, k, tensors) for k, v in state_dict.items()}


def unflatten_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Put together again what `flatten_optimizer` split.

    Raises:
        KeyError: A tensor is missing.
        ValueError: There are tensors that belong nowhere.
    """
    left = set(tensors)
    state_dict = {key: _deep(value, tensors, left) for key, value in rest.items()}
    if left:
        raise ValueError(f"optimizer tensors that belong nowhere: {', '.join(sorted(left))}")
    return state_dict


def _flat(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        assert path not in tensors, f"two states are called {path}"
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[k, _flat(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        inner = [_flat(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": inner} if isinstance(value, tuple) else inner
    return value


def _deep(value: Any, tensors: Mapping[str, Tensor], left: set[str]) -> Any:
    if isinstance(value, list):
        return [_deep(v, tensors, left) for v in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        left.discard(content)
        return tensors[content]
    if kind == "tuple":
        return tuple(_deep(v, tensors, left) for v in content)
    return {k: _deep(v, tensors, left) for k, v in content}
