"""Weights that travel: safetensors files that say how to rebuild and how to feed what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dira_core.build import axes
from dira_core.components import Choice
from dira_core.data import Window
from dira_core.data.crops import centre_box, reduce_channels
from dira_core.data.loader import cut
from dira_core.data.readers import read
from dira_core.errors import CheckpointError
from dira_core.plugins import installed, make
from dira_core.recipe import Recipe, Settings
from dira_core.roles import Backbone, Restorer
from dira_core.tensorfiles import read_tensors, write_tensors
from dira_core.trio import Trio
from dira_core.types import Image

FORMAT = 1
"""Of the header of a weights file."""


@dataclass(frozen=True)
class Preprocessing:
    """Turn an image into what the weights were trained on: central square, resized, in [0, 1].

    Attributes:
        channels: Of the input.
        size: Side of the input in px.
        window: What maps to 0 and 1, as in the recipe the weights come from.
    """

    channels: int
    size: int
    window: Window = "auto"

    def __call__(self, image: Path | str | np.ndarray[Any, Any]) -> Tensor:
        """Return (1, channels, size, ...) float32 of a file, or of pixels (C, *S) in full range.

        Raises:
            DataError: The file cannot be read.
        """
        if isinstance(image, np.ndarray):
            whole = np.issubdtype(image.dtype, np.integer)
            read_image = Image(image, (0.0, float(np.iinfo(image.dtype).max) if whole else 1.0))
        else:
            read_image = read(Path(image), self.window)
        found = replace(read_image, pixels=reduce_channels(read_image.pixels, self.channels))
        return cut([found], centre_box(found.pixels.shape[1:])[None], self.size, self.channels)


@dataclass(frozen=True)
class Pretrained:
    """What `dira_core.load` returns.

    Attributes:
        backbone: In evaluation mode, on the CPU.
        restorer: The decoder that was trained with it, or None.
        preprocess: What to feed the backbone with.
    """

    backbone: Backbone
    restorer: Restorer | None
    preprocess: Preprocessing


def write_weights(folder: Path, trio: Trio, settings: Settings) -> None:
    """Write `backbone.safetensors`, and `restorer.safetensors` where there is a decoder.

    A recipe's component names and options, its preprocessing and its seed are in the header; a trio
    that was put together by hand is rebuilt by hand (`load_state_dict`).
    """
    folder.mkdir(exist_ok=True)
    about: dict[str, Any] = {
        "format": FORMAT,
        "channels": settings.views.channels,
        "size": settings.views.size,
    }
    if isinstance(settings, Recipe):
        about |= {
            "dims": axes(settings),
            "window": settings.data.options.model_dump(mode="json").get("window", "auto"),
            "backbone": settings.model_dump(mode="json")["backbone"],
            "restorer": settings.model_dump(mode="json")["restorer"],
        }
    header = {"dira": json.dumps(about)}
    write_tensors(folder / "backbone.safetensors", trio.backbone.state_dict(), header)
    if trio.restorer is not None:
        write_tensors(folder / "restorer.safetensors", trio.restorer.state_dict(), header)


def load(path: Path | str) -> Pretrained:
    """Load pretrained weights, with the preprocessing they were trained with.

    Args:
        path: A run folder, or its `weights` folder.

    Raises:
        CheckpointError: There are no weights, they belong to parts put together by hand, or they do
            not fit the component they name. Nothing is ever loaded in part.
    """
    folder = Path(path) / "weights" if (Path(path) / "weights").is_dir() else Path(path)
    about = _header(folder / "backbone.safetensors")
    if "backbone" not in about:
        raise CheckpointError(
            f"{folder} was trained on a backbone put together by hand: build it again and use its "
            "load_state_dict with safetensors.torch.load_file"
        )
    backbone: Backbone = make(
        "backbone", _choice("backbone", about), about["channels"], about["dims"]
    )
    _fill(backbone, folder / "backbone.safetensors")
    restorer: Restorer | None = None
    if (folder / "restorer.safetensors").exists():
        restorer = make("restorer", _choice("restorer", about), backbone)
        assert restorer is not None
        _fill(restorer, folder / "restorer.safetensors")
    window = about["window"]
    if isinstance(window, list):
        window = (window[0], window[1])  # JSON has no tuples
    return Pretrained(backbone, restorer, Preprocessing(about["channels"], about["size"], window))


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no weights in {path.parent}: give the folder of a finished run")
    try:
        read_tensors(path)
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("dira", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): copy it again from its run folder"
        ) from error
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name} is not written by this dira: its header has no format {FORMAT}"
        )
    return about


def _choice(kind: Any, about: Mapping[str, Any]) -> Choice:
    options = dict(about[kind])
    name = options.pop("name")
    try:
        return Choice(name, installed().find(kind, name).options.model_validate(options))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise CheckpointError(
            f"the {kind} {name!r} installed here does not take the options these weights were made "
            f"with ({wrong}): install the version they were made with"
        ) from error


def _fill(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(read_tensors(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): copy it again from its run folder"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{path.name} does not fit the component it names: {error}"
        ) from error
    module.eval()
