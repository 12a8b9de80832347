"""The network a transfer starts from: a run's, a file's, torchvision's, or an untrained one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dira_core import __version__
from dira_core.build import seeded
from dira_core.components import Choice
from dira_core.donor import IMAGENET, imagenet
from dira_core.encodings import pool
from dira_core.errors import RecipeError
from dira_core.export import Preprocessing, build
from dira_core.files import digest
from dira_core.plugins import installed
from dira_core.roles import Backbone, Restorer
from dira_core.transfer.plan import Plan
from dira_core.transplant import load_into, stem_of
from dira_core.weightfiles import Header, Parts, read_weights

RANDOM = "random"
NETWORK, CHANNELS, SIZES = "resnet50", 1, {2: 224, 3: 32}
"""What is taken where neither weights nor plan say; sides by the number of axes."""


@dataclass(frozen=True)
class Start:
    """Where a transfer starts.

    Attributes:
        backbone: With its weights, in evaluation mode, on the CPU.
        prepare: What to feed it with.
        decoder: Of the weights, by name; empty without one.
        restorer: Name and options of the decoder that the weights name, or None.
        chosen: Name and options of the backbone.
        spacing: Millimetres that volumes were resampled to in pretraining, or None.
        provenance: What the weights are, for the result.
    """

    backbone: Backbone
    prepare: Preprocessing
    decoder: Mapping[str, Tensor]
    restorer: Mapping[str, Any] | None
    chosen: Mapping[str, Any]
    spacing: Sequence[float] | None
    provenance: Mapping[str, Any]

    def network(self) -> dict[str, Any]:
        """Return what it takes to build the backbone again, and to feed it, as plain values."""
        return {
            "backbone": dict(self.chosen),
            "dims": self.backbone.dims,
            "channels": self.prepare.channels,
            "size": self.prepare.size,
            "window": self.prepare.window,
        }


def start(weights: str, plan: Plan) -> Start:
    """Read weights and build their backbone.

    Args:
        weights: A run folder, a file, "imagenet", "random" (by the plan's seed) or "random:SEED":
            the untrained network that a run of this seed starts from.
        plan: Says what the weights do not.

    Raises:
        CheckpointError: There are no weights that can be trusted.
        RecipeError: They do not fit the network, or the plan contradicts them.
    """
    seed = _seed(weights, plan.seed)
    parts = _parts(weights, plan) if seed is None else Parts({})
    chosen = _chosen(weights, parts, plan)
    said = parts.header or _otherwise(plan, chosen)
    channels = plan.channels or said.channels
    with seeded(seed or 0, "backbone"):
        backbone: Backbone = build("backbone", chosen, channels, said.dims)
    if seed is None:
        report = load_into(parts.backbone, backbone, stem_of(backbone))
        if not report.complete:
            raise RecipeError(
                f"{weights} does not fit backbone {chosen['name']!r} ({report.differences()}): "
                "name another with --backbone"
            )
    prepare = Preprocessing(channels, plan.size or said.size, plan.window or said.window)
    recipe = Path(weights) / "recipe.toml"
    return Start(
        backbone.eval(),
        prepare,
        parts.restorer,
        said.restorer,
        chosen,
        said.spacing,
        {
            "weights": weights if seed is None else f"{RANDOM}:{seed}",
            "sha256": dict(parts.digests),
            "recipe_sha256": digest(recipe) if recipe.is_file() else None,
            "origin": said.origin,
            "backbone": chosen["name"],
            "dira": __version__,
        },
    )


def _otherwise(plan: Plan, chosen: Mapping[str, Any]) -> Header:
    """Return a header for weights without one.

    Raises:
        RecipeError: The backbone does not work on as many axes as the target's images have.
    """
    name = str(chosen["name"])
    works = installed().find("backbone", name).dims
    has = installed().find("target", plan.target.name).dims
    both = [dims for dims in has if dims in works]
    if not both:
        raise RecipeError(
            f"target {plan.target.name!r} has {has[0]}-D images, backbone {name!r} takes others: "
            "name one with --backbone (`dira plugins` shows the axes of each)"
        )
    dims = len(plan.size) if isinstance(plan.size, tuple) and len(plan.size) in both else both[0]
    return Header(channels=CHANNELS, size=SIZES[dims], dims=dims)


def _seed(weights: str, otherwise: int) -> int | None:
    """Return the seed of an untrained network; None where weights are to be read."""
    name, _, seed = weights.partition(":")
    if name != RANDOM:
        return None
    if seed and not (seed.isdecimal() and int(seed) < 2**32):
        raise RecipeError(f"an untrained network is random or random:SEED, got {weights!r:.60}")
    return int(seed) if seed else otherwise


def _parts(weights: str, plan: Plan) -> Parts:
    if weights == IMAGENET:
        return imagenet(plan.backbone.name if plan.backbone else NETWORK)
    if not Path(weights).exists():
        raise RecipeError(
            f"no weights {weights!r}: give a run folder, a file, imagenet, or random[:SEED]"
        )
    return read_weights(Path(weights))


def _chosen(weights: str, parts: Parts, plan: Plan) -> dict[str, Any]:
    """Return name and options of the backbone."""
    said = parts.header.backbone if parts.header is not None else None
    if said is not None:
        if plan.backbone is not None and plan.backbone.name != said.get("name"):
            raise RecipeError(
                f"{weights} holds backbone {said.get('name')!r}, --backbone says "
                f"{plan.backbone.name!r}: leave it out, or use other weights"
            )
        return said
    if plan.backbone is not None:
        return _flat(plan.backbone)
    name = NETWORK if weights == IMAGENET or not parts.backbone else parts.network
    if name is None:
        raise RecipeError(f"{weights} does not say which network it holds: name it with --backbone")
    return {"name": name}


def _flat(choice: Choice) -> dict[str, Any]:
    return {"name": choice.name, **choice.options.model_dump(mode="json")}


class Classifier(nn.Module):
    """A linear layer on the deepest map, averaged over space: (B, C, *S) -> logits (B, K)."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.channels[-1], classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(pool(self.backbone(images)[-1]))
        return logits.float()


class Segmenter(nn.Module):
    """Backbone and decoder: (B, C, *S) -> a probability of each class at each pixel, (B, K, *S)."""

    def __init__(self, backbone: Backbone, decoder: Restorer) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.decoder(self.backbone(images))
        sides = tuple(slice(side) for side in images.shape[2:])
        return found[:, :, *sides].float()


def classifier(begun: Start, classes: int, seed: int) -> Classifier:
    """Put a new linear layer on the backbone."""
    with seeded(seed, "transfer head"):
        return Classifier(begun.backbone, classes)


def segmenter(begun: Start, classes: int, plan: Plan) -> tuple[Segmenter, str]:
    """Put the weights' decoder on the backbone, its last layer new, and say what was taken.

    A restorer is built for images with as many channels as there are classes: whatever changes its
    shape with their number is the last layer, and starts anew; the rest is taken where all of it
    fits.

    Raises:
        RecipeError: It is not known which decoder to build.
    """
    chosen = _decoder(begun, plan)
    with seeded(plan.seed, "restorer"):
        decoder = _restorer(chosen, begun.backbone, classes)
        other = _restorer(chosen, begun.backbone, classes + 1).state_dict()
    own = decoder.state_dict()
    body = {name for name, tensor in own.items() if tensor.shape == other[name].shape}
    said = "starts afresh, no weights for it"
    if begun.decoder:
        state = {name: begun.decoder.get(name, own[name]) for name in own if name in body}
        state |= {name: own[name] for name in own if name not in body}
        missing = sum(name not in begun.decoder for name in body)
        whole = missing == 0 and load_into(state, decoder).complete
        said = (
            f"{len(body)} of {len(own)} tensors taken over, its last layer starts afresh"
            if whole
            else "starts afresh, the weights' decoder is another one"
        )
    return Segmenter(begun.backbone, decoder), said


def _restorer(chosen: Mapping[str, Any], backbone: Backbone, classes: int) -> Restorer:
    shape = copy.copy(backbone)  # the same modules; a decoder only asks for their shapes
    shape.in_channels = classes
    restorer: Restorer = build("restorer", dict(chosen), shape)
    return restorer


def _decoder(begun: Start, plan: Plan) -> Mapping[str, Any]:
    if begun.restorer is not None:
        return begun.restorer
    if plan.decoder is not None:
        return _flat(plan.decoder)
    of_dims = (c for c in installed().components("restorer") if begun.backbone.dims in c.dims)
    names = [component.name for component in of_dims]
    if len(names) != 1:
        raise RecipeError(
            f"masks need a decoder, and the weights have none: choose one of {', '.join(names)} "
            "with --set decoder=NAME"
        )
    return {"name": names[0]}
