"""Weights for other libraries, each compared with what that library computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dira_core.errors import RecipeError
from dira_core.export import Pretrained, build
from dira_core.exports import libraries, onnx
from dira_core.exports.card import card
from dira_core.files import write_atomic, writing
from dira_core.roles import Backbone
from dira_core.transplant import load_into, stem_of
from dira_core.weightfiles import weights_folder

SUFFIXES: Mapping[str, str] = {
    "torchvision": ".safetensors",
    "timm": ".safetensors",
    "smp": ".safetensors",
    "onnx": ".onnx",
}
"""Where weights can go, and in what kind of file."""

ENCODERS_ALONE = ("torchvision", "timm")


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
        to: A key of `SUFFIXES`.
        out: File to write, with the suffix of its kind.
        channels: Of the exported network's input; None keeps it. See `transplant.rechannelled`.

    Raises:
        RecipeError: The library has no such network, or is not installed, or `out` has another
            suffix.
        CheckpointError: The outputs differ.
        RunFolderError: The file cannot be written there.
    """
    if to not in SUFFIXES:
        raise RecipeError(f"--to is one of {', '.join(SUFFIXES)}, got {to!r}")
    if out.suffix != SUFFIXES[to]:
        raise RecipeError(f"--to {to} writes a {SUFFIXES[to]} file, got --out {out}")
    if to in ENCODERS_ALONE:
        header = pretrained.header.model_copy(update={"restorer": None})
        pretrained = replace(pretrained, restorer=None, header=header)
    there = with_channels(pretrained, channels or pretrained.backbone.in_channels)
    write = onnx.write if to == "onnx" else libraries.write
    path = out.with_suffix(".md")
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        written = write(pretrained, there, to, out)
        write_atomic(path, card(there.header, to, out.name, written).encode())
    return Exported([*written.files, path], written.difference, written.note)


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
    return home / "exports" / f"{name}{SUFFIXES.get(to, '')}"
