"""Weights for other libraries, each compared with what that library computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dira_core.components import Choice, Options
from dira_core.errors import RecipeError
from dira_core.export import Pretrained, build
from dira_core.exports import libraries, onnx
from dira_core.exports.card import card
from dira_core.files import write_atomic, writing
from dira_core.plugins import installed, make
from dira_core.roles import Backbone
from dira_core.transplant import load_into, stem_of
from dira_core.weightfiles import weights_folder

ONNX = "onnx"
"""Where weights can go that is no library's network."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: Weights first, the model card last.
        difference: Largest difference of outputs, relative to the largest output.
        note: What the weights do not hold.
    """

    files: Sequence[Path]
    difference: float
    note: str


def export(pretrained: Pretrained, to: str, out: Path, channels: int | None = None) -> Exported:
    """Write weights as another library names them, and a model card beside them.

    Nothing is written unless the library's own network, with every tensor loaded and none left
    over, gives the same output for the same random images.

    Args:
        pretrained: From `dira_core.load`.
        to: One of `destinations()`.
        out: File to write, with the suffix of its kind.
        channels: Of the exported network's input; None keeps it. See `transplant.rechannelled`.

    Raises:
        RecipeError: The library has no such network, or is not installed, or `out` has another
            suffix.
        CheckpointError: The outputs differ.
        RunFolderError: The file cannot be written there.
    """
    if to not in destinations():
        raise RecipeError(f"--to is one of {', '.join(destinations())}, got {to!r}")
    if out.suffix != suffix(to):
        raise RecipeError(f"--to {to} writes a {suffix(to)} file, got --out {out}")
    there = with_channels(pretrained, channels or pretrained.backbone.in_channels)
    twin: libraries.Twin | None = None
    if to != ONNX:
        twin = make("export", Choice(to, Options()), there)
    if twin is not None and not twin.restores:
        pretrained, there = encoder_alone(pretrained), encoder_alone(there)
    path = out.with_suffix(".md")
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        if twin is None:
            written = onnx.write(pretrained, there, to, out)
        else:
            written = libraries.write(pretrained, there, twin, to, out)
        write_atomic(path, card(there.header, to, out.name, written).encode())
    return Exported([*written.files, path], written.difference, written.note)


def destinations() -> list[str]:
    """Return where weights can go: the libraries that plugins offer, and ONNX."""
    return [*installed().names("export"), ONNX]


def suffix(to: str) -> str:
    """Return the suffix of the files that a destination has."""
    return ".onnx" if to == ONNX else ".safetensors"


def encoder_alone(pretrained: Pretrained) -> Pretrained:
    """Return weights without their decoder."""
    header = pretrained.header.model_copy(update={"restorer": None})
    return replace(pretrained, restorer=None, header=header)


def with_channels(pretrained: Pretrained, channels: int) -> Pretrained:
    """Rebuild a network for images of another number of channels; see `transplant.rechannelled`.

    Raises:
        RecipeError: Neither number is 1: which channel is which cannot be known.
    """
    header = pretrained.header
    before = pretrained.backbone.in_channels
    if channels == before:
        return pretrained
    assert header.backbone is not None
    backbone: Backbone = build("backbone", header.backbone, channels, header.dims)
    report = load_into(pretrained.backbone.state_dict(), backbone, stem_of(backbone))
    if not report.complete:
        raise RecipeError(
            f"weights of {before} channels cannot be given {channels}, only from or to one channel "
            f"of a first convolution ({report.differences()}): leave --channels out"
        )
    return Pretrained(
        backbone.eval(),
        pretrained.restorer,
        replace(pretrained.preprocess, channels=channels),
        header.model_copy(update={"channels": channels}),
    )


def usual_place(path: Path, to: str, channels: int | None = None) -> Path:
    """Return where the export of a run folder, or of a folder of weights, goes by itself.

    With another number of channels it is another file.
    """
    folder = weights_folder(path)
    home = folder.parent if folder.name == "weights" else folder
    name = to if channels is None else f"{to}-{channels}ch"
    return home / "exports" / f"{name}{suffix(to)}"
