"""What roles return, looked at before it is used: a plugin's mistake is called that, and named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from dira_core.errors import PluginError
from dira_core.roles import Backbone, Discriminator, Source, trainable
from dira_core.types import Image, Objective

PIXELS = ("u1", "u2", "f4")
"""What pixels of an image may be, as numpy says it."""

GROUP_KEYS = ("params", "weight_decay", "lr_scale", "schedule")
"""What a parameter group of a Discriminator may say."""


def demand(role: object, flaw: str | None) -> None:
    """Raise a PluginError where a role has a flaw."""
    if flaw is not None:
        module = type(role).__module__.partition(".")[0]
        raise PluginError(
            f"{type(role).__name__} of {module!r}: {flaw}; report it to its plugin's authors, or "
            "try `dira plugins check` on the component"
        )


def count_flaw(what: str, number: object) -> str | None:
    """Say why something is no number of views, or None."""
    right = isinstance(number, int) and number >= 1
    return None if right else f"{what} is {number!r:.60}, not a number of views from 1 on"


def scalar_flaw(what: str, value: object) -> str | None:
    """Say why something is no tensor of one number, or None."""
    if isinstance(value, Tensor):
        return f"{what} is not a scalar, but {tuple(value.shape)}" if value.shape else None
    return f"{what} is no tensor, but {type(value).__name__}"


def objective_flaw(objective: object) -> str | None:
    """Say what is wrong with what a Discriminator returned, or None."""
    if not isinstance(objective, Objective):
        return f"forward() returned {type(objective).__name__}, not an Objective"
    scalars = {"the loss": objective.loss}
    scalars |= {f"the metric {name!r}": value for name, value in objective.metrics.items()}
    for what, value in scalars.items():
        if flaw := scalar_flaw(what, value):
            return flaw
    z = objective.embedding
    if z is not None and not (isinstance(z, Tensor) and z.dim() == 2):
        return f"the embedding is {_said(z)}, not (B, D)"
    return None


def groups_flaw(discriminator: Discriminator) -> str | None:
    """Say what is wrong with a Discriminator's parameter groups, or None."""
    groups: object = discriminator.param_groups()
    if not isinstance(groups, Sequence):
        return f"param_groups() returned {type(groups).__name__}, not a list"
    for group in groups:
        if not (isinstance(group, Mapping) and "params" in group):
            return f"param_groups() holds {_said(group)}, not tables with a key 'params'"
        if unknown := sorted(set(group) - set(GROUP_KEYS)):
            known = ", ".join(GROUP_KEYS)
            return f"param_groups() has the unknown key {unknown[0]!r} (known: {known})"
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    if sorted(grouped) != sorted(map(id, trainable([discriminator]))):
        return "param_groups() must hold every parameter exactly once, and no other"
    return None


def sharing_flaw(discriminator: Discriminator, others: Sequence[nn.Module]) -> str | None:
    """Say whether a Discriminator holds trained parameters of backbone or decoder, or None."""
    theirs = set(map(id, trainable(others)))
    for name, parameter in discriminator.named_parameters():
        if id(parameter) in theirs:
            return (
                f"its parameter {name!r} is the backbone's or the decoder's, which are trained "
                "already: keep no module of theirs"
            )
    return None


def source_flaw(source: Source) -> str | None:
    """Say which of a source's columns is not one integer for each image, or None."""
    columns = {"labels": source.labels, "words": source.words, "patients": source.patients}
    for name, column in columns.items():
        if column is not None and not (
            isinstance(column, np.ndarray)
            and column.shape == (len(source),)
            and column.dtype.kind in "iu"
        ):
            found = getattr(column, "shape", type(column).__name__)
            return f"`{name}` must be an array of {len(source)} integers, got {found}"
    return None


def image_flaw(image: object) -> str | None:
    """Say why what a source read is no image, or None."""
    if not isinstance(image, Image):
        return f"read() returned {type(image).__name__}, not an Image"
    pixels: object = image.pixels
    if not (isinstance(pixels, np.ndarray) and pixels.ndim > 2 and pixels.dtype.str[1:] in PIXELS):
        found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels)
        return f"read() returned pixels that are {found}, not uint8, uint16 or float32 (C, *S)"
    if len(image.window) != 2 or not all(map(math.isfinite, image.window)):
        return f"read() returned the window {image.window!r:.60}, not two numbers"
    return None


def backbone_flaw(backbone: Backbone, channels: int, dims: int) -> str | None:
    """Say what a backbone for images with so many channels and axes says wrongly, or None."""
    try:
        takes = (backbone.in_channels, backbone.dims)
        levels = (len(backbone.channels), len(backbone.strides))
    except (AttributeError, TypeError) as error:
        return f"it must say its channels, strides, in_channels and dims ({error})"
    if takes != (channels, dims):
        return f"its in_channels and dims are {takes}, it was built for {(channels, dims)}"
    if levels[0] != levels[1] or not levels[0]:
        return f"its channels and strides are of {levels} maps"
    return None


def pyramid_flaw(backbone: Backbone, pyramid: object) -> str | None:
    """Say how maps differ in number or channels from what a backbone says, or None."""
    if not (isinstance(pyramid, Sequence) and all(isinstance(m, Tensor) for m in pyramid)):
        return f"forward() returned {type(pyramid).__name__}, not a list of maps"
    axes = backbone.dims + 2
    found = [tuple(level.shape) for level in pyramid]
    wanted = list(backbone.channels)
    if [len(shape) for shape in found] != [axes] * len(wanted) or wanted != [s[1] for s in found]:
        return f"its maps are {found}, its `channels` {wanted} and its `dims` {backbone.dims}"
    return None


def shape_flaw(method: str, image: object, shape: Sequence[int]) -> str | None:
    """Say how what a method returned differs from images of a shape, or None."""
    if isinstance(image, Tensor) and image.shape == shape:
        return None
    return f"{method}() returned {_said(image)}, not {tuple(shape)}"


def _said(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
