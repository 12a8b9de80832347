"""Put weights into a module and say what fitted, what was adapted and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dira_core.errors import CheckpointError
from dira_core.roles import Backbone

LISTED = 2
"""Names shown of a kind in one line."""

FAMILIES = 8
"""Of names in families, how many families."""


@dataclass(frozen=True)
class Report:
    """How tensors compare with those a module has, by name.

    Attributes:
        matched: Taken over as they are.
        adapted: Taken over after a change, and which.
        missing: The module has them, nothing was given.
        unexpected: Given, and the module has no such name.
        wrong: Given with a shape or a kind of number that does not fit, and which.
    """

    matched: tuple[str, ...]
    adapted: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the module is given."""
        return not self.missing and not self.wrong

    @property
    def exact(self) -> bool:
        """Whether every tensor of the module is given as it is, and nothing else."""
        return self.complete and not self.adapted and not self.unexpected

    def summary(self, what: str) -> str:
        """Return "61 of 62 backbone tensors matched, 1 adapted (...)", in one line."""
        n = len(self.matched) + len(self.adapted) + len(self.missing) + len(self.wrong)
        adapted = _counted("adapted", [f"{name} {how}" for name, how in self.adapted.items()])
        rest = "".join(f", {text}" for text in (*adapted, *self._misfits()))
        return f"{len(self.matched)} of {n} {what} tensors matched{rest}"

    def differences(self) -> str:
        """Return what does not fit, in one line."""
        return ", ".join(self._misfits()) or f"adapted: {some(list(self.adapted))}"

    def _misfits(self) -> Iterator[str]:
        yield from _counted("missing", self.missing)
        yield from _counted("of another shape", [f"{n} {how}" for n, how in self.wrong.items()])
        yield from _counted("unexpected", self.unexpected)


def some(names: Sequence[str]) -> str:
    """Return the first names of many, in one line."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(_printable, names[:LISTED])) + more


def families(names: Sequence[str]) -> str:
    """Return many names by their first two parts, "166 encoder_k.backbone.*, 1 queue"."""
    parts = [name.removeprefix("module.").split(".") for name in names]
    found = Counter(".".join(p[:2]) + (".*" if len(p) > 2 else "") for p in parts)
    shown = [f"{n} {_printable(family)}" for family, n in found.most_common(FAMILIES)]
    more = f" and {len(found) - FAMILIES} more" if len(found) > FAMILIES else ""
    return ", ".join(shown) + more


def match(state: Mapping[str, Tensor], module: nn.Module, stem: str | None = None) -> Report:
    """Compare tensors with those of a module; nothing is changed.

    How many batches a norm has seen may be missing, or be no whole number, as where all of a file
    was halved: no result depends on it.

    Args:
        state: By name.
        module: Has the names and shapes that are wanted.
        stem: Name of the weight whose input channels may be adapted, see `rechannelled`.
    """
    matched, adapted, missing, wrong = [], {}, [], {}
    wanted = module.state_dict()
    for name, target in wanted.items():
        given = state.get(name)
        if name.endswith("num_batches_tracked") and (given is None or given.is_floating_point()):
            continue
        if given is None:
            missing.append(name)
            continue
        same_kind = given.is_floating_point() == target.is_floating_point()
        if same_kind and given.shape == target.shape:
            matched.append(name)
        elif same_kind and name == stem and _can_rechannel(given.shape, target.shape):
            adapted[name] = f"{given.shape[1]} -> {target.shape[1]} channels"
        else:
            wrong[name] = f"is {_shape(given)}, must be {_shape(target)}"
    unexpected = [name for name in state if name not in wanted]
    return Report(tuple(matched), adapted, tuple(missing), tuple(unexpected), wrong)


def load_into(state: Mapping[str, Tensor], module: nn.Module, stem: str | None = None) -> Report:
    """Load tensors where every tensor of the module is given; else change nothing.

    Args:
        state: As for `match`.
        module: What to load into.
        stem: As for `match`.

    Returns:
        The same as `match`: only if it is `complete` was anything loaded.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """
    report = match(state, module, stem)
    if not report.complete:
        return report
    tensors = module.state_dict() | {name: state[name] for name in report.matched}
    for name in report.adapted:
        given, target = state[name], tensors[name]
        tensors[name] = rechannelled(given.to(target.dtype), target.shape[1])  # then no half sums
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors hold NaN or infinity ({some(broken)}): take other weights"
        )
    module.load_state_dict(tensors)
    return report


def stem_of(backbone: Backbone) -> str | None:
    """Return the name of the convolution weight that reads the image, or None."""
    for name, parameter in backbone.named_parameters():
        if parameter.dim() == backbone.dims + 2:
            return name if parameter.shape[1] == backbone.in_channels else None
    return None


def rechannelled(weight: Tensor, channels: int) -> Tensor:
    """Change the input channels of a first convolution, (O, C, *K) -> (O, channels, *K).

    A grey image repeated over the channels gives the same maps before and after, since convolution
    is linear. To one channel the weights are summed. From one channel each gets W / channels, and
    the last what rounding left of W: of three channels the sum is W to the last bit (w - 2 fl(w/3)
    is exact in floating point, Sterbenz' lemma). Colour then counts by its mean over the channels.
    """
    if weight.shape[1] == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True, dtype=torch.float64).to(weight.dtype)
    assert weight.shape[1] == 1, "the caller asks _can_rechannel"
    share = weight / channels
    return torch.cat([share] * (channels - 1) + [weight - (channels - 1) * share], dim=1)


def _can_rechannel(given: torch.Size, wanted: torch.Size) -> bool:
    if len(given) != len(wanted) or len(given) < 3:
        return False
    one = 1 in (given[1], wanted[1])
    return one and given[0] == wanted[0] and given[2:] == wanted[2:] and given[1] > 0


def _counted(kind: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {kind} ({some(names)})"] if names else []


def _printable(name: str) -> str:
    """Return a name of a file that may be hostile, without what a terminal would obey."""
    return name.encode("unicode_escape").decode()


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return ("x".join(map(str, tensor.shape)) or "one number") + kind
