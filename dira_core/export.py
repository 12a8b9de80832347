"""Weights that travel: safetensors files that say how to rebuild and how to feed what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dira_core.build import axes
from dira_core.components import Choice, Kind
from dira_core.data import Window
from dira_core.data.crops import centre_box, reduce_channels
from dira_core.data.cutting import cut
from dira_core.data.readers import read
from dira_core.errors import CheckpointError
from dira_core.plugins import installed, make
from dira_core.recipe import Recipe
from dira_core.roles import Backbone, Restorer
from dira_core.settings import Settings
from dira_core.tensorfiles import write_tensors
from dira_core.transplant import load_into
from dira_core.trio import Trio
from dira_core.types import Image
from dira_core.view_options import sides_of
from dira_core.weightfiles import BACKBONE, RESTORER, Header, read_safetensors, weights_folder


@dataclass(frozen=True)
class Preprocessing:
    """Turn an image into what the weights were trained on: central square, resized, in [0, 1].

    Attributes:
        channels: Of the input.
        size: Side of the input in px, or its sides.
        window: What maps to 0 and 1, as in the recipe the weights come from.
        spacing: Millimetres that volumes are resampled to first, or None.
    """

    channels: int
    size: int | tuple[int, ...]
    window: Window = "auto"
    spacing: tuple[float, float, float] | None = None

    def __call__(self, image: Path | str | np.ndarray[Any, Any]) -> Tensor:
        """Return (1, channels, size, ...) float32 of a file, or of pixels (C, *S) in full range.

        Raises:
            DataError: The file cannot be read.
        """
        if isinstance(image, np.ndarray):
            whole = np.issubdtype(image.dtype, np.integer)
            read_image = Image(image, (0.0, float(np.iinfo(image.dtype).max) if whole else 1.0))
        else:
            read_image = read(Path(image), self.window, self.spacing)
        found = replace(read_image, pixels=reduce_channels(read_image.pixels, self.channels))
        box = centre_box(found.pixels.shape[1:])
        pixels = torch.empty(1, self.channels, *sides_of(self.size, len(box)))
        cut(found, box.tolist(), pixels[0])
        return pixels


@dataclass(frozen=True)
class Pretrained:
    """What `dira_core.load` returns.

    Attributes:
        backbone: In evaluation mode, on the CPU.
        restorer: The decoder that was trained with it, or None.
        preprocess: What to feed the backbone with.
        header: What the files say about them.
    """

    backbone: Backbone
    restorer: Restorer | None
    preprocess: Preprocessing
    header: Header


def write_weights(
    folder: Path, trio: Trio, settings: Settings, reading: Mapping[str, Any] | None = None
) -> None:
    """Write the weights of a trio: `backbone.safetensors`, `restorer.safetensors`.

    A recipe's component names and options, its preprocessing and what it started from are in the
    header; a trio that was put together by hand is rebuilt by hand (`load_state_dict`).

    Args:
        folder: Made where it is not there.
        trio: Whose weights.
        settings: Of the run.
        reading: Of the run's source, see `Source`.
    """
    known: dict[str, Any] = {}
    if isinstance(settings, Recipe):
        chosen = settings.model_dump(mode="json", include={"backbone", "restorer"})
        how = settings.data.options.model_dump(include={"window", "spacing"})
        origin = None if settings.init is None else Path(settings.init).name
        known = {"dims": axes(settings), "origin": origin, **how, **(reading or {}), **chosen}
    header = Header(channels=settings.views.channels, size=settings.views.size, **known)
    write_parts(folder, trio.backbone, trio.restorer, header)


def write_parts(
    folder: Path, backbone: Backbone, restorer: Restorer | None, header: Header
) -> None:
    """Write a folder of weights that `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / BACKBONE, backbone.state_dict(), header.metadata())
    if restorer is not None:
        write_tensors(folder / RESTORER, restorer.state_dict(), header.metadata())


def load(path: Path | str) -> Pretrained:
    """Load pretrained weights, with the preprocessing they were trained with.

    Args:
        path: A run folder, its `weights` folder, or a folder that `dira import` wrote.

    Raises:
        CheckpointError: There are no weights, they belong to parts put together by hand, or they do
            not fit the component they name. Nothing is ever loaded in part.
    """
    folder = weights_folder(Path(path))
    state, header = read_safetensors(folder / BACKBONE)
    if header is None:
        raise CheckpointError(
            f"{folder / BACKBONE} is not written by this dira: bring it in with `dira import`"
        )
    if header.backbone is None:
        raise CheckpointError(
            f"{folder} was trained on a backbone put together by hand: build it again and use its "
            "load_state_dict with safetensors.torch.load_file"
        )
    backbone: Backbone = build("backbone", header.backbone, header.channels, header.dims)
    _fill(backbone, state, BACKBONE)
    restorer: Restorer | None = None
    if (folder / RESTORER).exists():
        restorer = build("restorer", header.restorer or {}, backbone)
        assert restorer is not None
        _fill(restorer, read_safetensors(folder / RESTORER)[0], RESTORER)
    preprocess = Preprocessing(header.channels, header.size, header.window, header.spacing)
    return Pretrained(backbone, restorer, preprocess, header)


def build(kind: Kind, chosen: dict[str, Any], *parts: Any) -> Any:
    """Build the component that a header names.

    Raises:
        CheckpointError: What is installed under this name takes other options.
        DiraError: Nothing is installed under it.
    """
    options = dict(chosen)
    name = str(options.pop("name", ""))
    component = installed().find(kind, name)
    try:
        choice = Choice(name, component.options.model_validate(options))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise CheckpointError(
            f"the {kind} {name!r} installed here does not take the options these weights were made "
            f"with ({wrong}): install the version they were made with"
        ) from error
    return make(kind, choice, *parts)


def _fill(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    report = load_into(state, module)
    if not report.exact:
        raise CheckpointError(
            f"{name} does not fit the component it names: {report.differences()}; copy it again "
            "from its run folder"
        )
    module.eval()
