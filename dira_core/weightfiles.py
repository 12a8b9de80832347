"""Read weights from any file they travel in, and tell encoder from decoder by their names.

The names are those of segmentation_models_pytorch's U-Net, which the public DiRA code and dira's
own U-Net share: `encoder.*`, `decoder.*` and `segmentation_head.0.*` (here: `head.*`). A file
without `encoder.*` is an encoder alone. No file is ever unpickled beyond tensors.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dira_core.data import Window
from dira_core.errors import CheckpointError
from dira_core.files import digest
from dira_core.tensorfiles import read_tensors

FORMAT = 1
"""Of the header of a weights file."""

BACKBONE, RESTORER = "backbone.safetensors", "restorer.safetensors"

HOW = (
    "central square, resized to `size` px, values in [0, 1] as `window` says; no mean is taken off "
    "and nothing is divided by a deviation"
)

UNSAID = f"the imported file does not say how; dira would take the {HOW}"

_PREFIXES = ("module.", "_orig_mod.", "encoder_q.", "backbone.")
"""What training code puts before the names of the network that is kept, outermost first."""

_RESNETS: Mapping[tuple[int | bool, ...], str] = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}
"""Blocks of the four layers, and whether a block has three convolutions."""


class Header(BaseModel):
    """What a file of dira says about its weights: how to rebuild them, and what to feed them.

    Attributes:
        channels: Of the input.
        size: Side of the input in px, or its sides.
        preprocessing: How an image is prepared, in words for other libraries' users.
        dims: Number of spatial axes.
        window: What maps to 0 and 1.
        spacing: Millimetres volumes are resampled to first, or None.
        backbone: Name and options; None for parts put together by hand.
        restorer: Name and options, or None.
        origin: What the weights were before: the initial weights of a run, or an imported file.
        imported: Whether they are of another program, and dira has not trained them since.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int = FORMAT
    channels: int = Field(ge=1, le=4096)
    size: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...]
    preprocessing: str = HOW
    dims: int = Field(2, ge=1)
    window: Window = "auto"
    spacing: tuple[float, float, float] | None = None
    backbone: dict[str, Any] | None = None
    restorer: dict[str, Any] | None = None
    origin: str | None = None
    imported: bool = False

    def metadata(self) -> dict[str, str]:
        """Return what files carry: one entry, the format would write several in any order."""
        return {"dira": self.model_dump_json()}


@dataclass(frozen=True)
class Parts:
    """Weights by part.

    Attributes:
        backbone: Of the encoder, by name.
        restorer: Of the decoder and its head, by name; empty without one.
        left_out: Names of the file that belong to neither, or to another network.
        header: Where dira wrote the file, what it says.
        digests: sha256 by file name.
    """

    backbone: dict[str, Tensor]
    restorer: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    header: Header | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def network(self) -> str | None:
        """What the encoder is called, as far as can be told."""
        if self.header is not None and self.header.backbone is not None:
            return str(self.header.backbone.get("name"))
        return resnet_name(self.backbone)


def read_weights(path: Path) -> Parts:
    """Read a run folder, a folder of weights, or a file of this or another program.

    Raises:
        CheckpointError: There is nothing, it cannot be read without running code, it is damaged, or
            it holds no encoder.
    """
    if path.is_dir():
        return _read_folder(weights_folder(path))
    state, header = _read_file(path)
    own = header is not None and path.name == BACKBONE  # names of a plugin's may look like others'
    parts = Parts(state) if own else split(state)
    if not parts.backbone:
        seen = ", ".join(sorted({name.split(".")[0] for name in state})[:5])
        why = f"no encoder (its names start with {seen})" if seen else "no tensors"
        raise CheckpointError(
            f"{path} holds {why}: give a file with `encoder.*`, or with an encoder alone"
        )
    return Parts(parts.backbone, parts.restorer, parts.left_out, header, {path.name: digest(path)})


def weights_folder(path: Path) -> Path:
    """Return the folder of weights that a run folder, itself, or the backbone in it means."""
    if path.name == BACKBONE:
        return path.parent
    return path / "weights" if (path / "weights").is_dir() else path


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Header | None]:
    """Read a safetensors file, and the header where dira wrote one.

    Raises:
        CheckpointError: It is not there, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights in {path.parent}: give the folder of a finished run")
    try:
        state = read_tensors(path)
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("dira")
        if about is None or json.loads(about).get("format") != FORMAT:
            return state, None
        return state, Header.model_validate_json(about)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        said = _brief(error)
        raise CheckpointError(f"{path} is damaged ({said}): copy it again") from error


def split(state: Mapping[str, Tensor]) -> Parts:
    """Tell encoder and decoder apart; prefixes of training code are taken off.

    Of a query and a key network only the query is taken, never a mixture of the two.
    """
    kept = {name: name for name in state if "encoder_k." not in name}
    for prefix in _PREFIXES:
        kept = _under(prefix, kept) or kept
    encoder = _under("encoder.", kept)
    head = {name: f"head.{left}" for name, left in _under("segmentation_head.0.", kept).items()}
    decoder = _under("decoder.", kept) | head if encoder else {}
    encoder = encoder or (kept if not _under("decoder.", kept) else {})
    left_out = tuple(name for name in state if name not in encoder and name not in decoder)
    return Parts(
        {left: state[name] for name, left in encoder.items()},
        {left: state[name] for name, left in decoder.items()},
        left_out,
    )


def joined(backbone: Mapping[str, Tensor], restorer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of encoder and decoder as one U-Net's; `split` undoes it."""
    state = {f"encoder.{name}": tensor for name, tensor in backbone.items()}
    for name, tensor in restorer.items():
        part, _, rest = name.partition(".")
        state[f"segmentation_head.0.{rest}" if part == "head" else f"decoder.{name}"] = tensor
    return state


def resnet_name(state: Mapping[str, Tensor]) -> str | None:
    """Return which ResNet of torchvision has blocks as many and of this kind, or None."""
    blocks = [
        len({name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")})
        for layer in (1, 2, 3, 4)
    ]
    return _RESNETS.get((*blocks, "layer1.0.conv3.weight" in state))


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the entries whose rest of a name has the prefix, without it."""
    return {n: left.removeprefix(prefix) for n, left in names.items() if left.startswith(prefix)}


def _read_folder(folder: Path) -> Parts:
    backbone, header = read_safetensors(folder / BACKBONE)
    digests = {BACKBONE: digest(folder / BACKBONE)}
    restorer: dict[str, Tensor] = {}
    if (folder / RESTORER).is_file():
        restorer, _ = read_safetensors(folder / RESTORER)
        digests[RESTORER] = digest(folder / RESTORER)
    return Parts(backbone, restorer, (), header, digests)


def _read_file(path: Path) -> tuple[dict[str, Tensor], Header | None]:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"no weights can be read from {path} ({error.strerror})") from error
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return read_safetensors(path)
    return _read_torch(path), None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a file makes torch say is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can raise anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise CheckpointError(
                f"{path} wants to call {code[1]} when it is read, and dira runs no code of a file: "
                "where you trust it, load it there and save model.state_dict() alone"
            ) from error
        raise CheckpointError(
            f"{path} is no file of weights, or damaged: give a safetensors file or what torch.save "
            "wrote of a state dict"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no tensors by name")
    return {
        name: tensor.detach()
        for name, tensor in _unwrapped(content, path).items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and _plain(tensor)
    }


def _unwrapped(content: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    """Return the state dict in what training code saved: "state_dict", or the only one there is."""
    held: dict[Any, Mapping[Any, Any]]
    held = {name: each for name, each in content.items() if _has_tensors(each)}
    if "state_dict" in held:
        return held["state_dict"]
    if _has_tensors(content) or not held:
        return content
    if len(held) > 1:
        names = ", ".join(sorted(map(ascii, held))[:5])
        raise CheckpointError(
            f"{path} holds several networks ({names}): load it, and save the one you want alone"
        )
    return next(iter(held.values()))


def _has_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(t, Tensor) for t in content.values())


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "its header: " + ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
    lines = str(error).splitlines()
    first = lines[0].encode("unicode_escape").decode() if lines else type(error).__name__
    return f"{first:.100}"
