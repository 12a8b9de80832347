"""`dira export` and `dira import`: weights from and to other libraries."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dira_core.plugins import installed


def _complete(typed: str) -> list[str]:
    return [name for name in (*installed().names("export"), "onnx") if name.startswith(typed)]


def export(
    run: Annotated[
        Path, typer.Argument(help="Run folder, its weights, or what `dira import` wrote.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="torchvision, timm, smp, onnx, or another export of `dira plugins`.",
            autocompletion=_complete,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; by default in RUN/exports.")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option("--channels", min=1, help="Of the input: 3 for colour, from grey weights."),
    ] = None,
) -> None:
    """Write weights for another library, and a model card.

    torchvision and timm: the encoder as a ResNet without classifier. smp: the U-Net of
    segmentation_models_pytorch. onnx: the encoder, and the whole network where there is a restorer.
    Before anything is written, the library's own network must give the same output.
    """
    from dira_core.export import load
    from dira_core.exports import export, usual_place
    from dira_core.seen import hand_on

    place = out or usual_place(run, to, channels)
    done = export(load(run), to, place, channels)
    hand_on(run, place)
    for path in done.files:
        typer.echo(f"wrote     {path}")
    typer.echo(f"checked   same images through dira and {to} differ by {done.difference:.1e}")
    typer.echo(f"note      {done.note}")


def import_(
    file: Annotated[Path, typer.Argument(help="safetensors, or what torch.save wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the weights to.")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Encoder; by default told from its blocks.")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option("--channels", min=1, help="Of the images; what the file says, or 1."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=8, help="Of a crop in px; what the file says, or 224."),
    ] = None,
) -> None:
    """Turn an encoder or a U-Net of another program into weights of dira.

    It reads U-Nets in the layout of the public DiRA code and of segmentation_models_pytorch
    (`encoder.*`, `decoder.*`, `segmentation_head.*`; of two networks the query's), and ResNets
    alone. No code of the file is run; what is missing is never filled up.
    """
    from dira_core.imports import import_weights

    done = import_weights(file, out, backbone, channels, size)
    for line in done.lines():
        typer.echo(line)
    typer.echo(f"wrote      {done.weights}; continue with: dira run --init {shlex.quote(str(out))}")
