"""`dira localize`: does a classifier know where the finding is?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dira_core.cli.telling import tell
from dira_core.errors import RecipeError
from dira_core.escaping import printable


def localize(
    transfer: Annotated[
        Path, typer.Argument(help="Folder of a finished fine-tuning on labels (`dira transfer`).")
    ],
    truth: Annotated[
        Path,
        typer.Option(
            "--truth",
            help="CSV file: image, label, x, y, w, h (px), or image, label, mask; or NIH's "
            "BBox_List_2017.csv.",
        ),
    ],
    renamed: Annotated[
        list[str] | None,
        typer.Option("--as", help="LABEL=CLASS: what the file calls a class; repeatable."),
    ] = None,
    overlays: Annotated[
        int, typer.Option("--overlays", min=0, help="Pictures that are drawn.")
    ] = 16,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the result; by default TRANSFER/localize."),
    ] = None,
) -> None:
    """Compare where a classifier looks with where experts saw the findings.

    The classifier was fine-tuned with labels of whole images alone; Grad-CAM shows what spoke for a
    finding. As in the ChestX-ray8 paper the map is cut at 60 and at 180 of 255, and a box around
    each piece is right if it agrees with an expert's (IoU, or IoBB: the part of it inside). Acc:
    images with a right box. AFP: wrong boxes an image. Pointing: images whose hottest pixel is
    right. Images the classifier was trained with are left out. Needs pip install "dira-ssl[eval]".

    \b
    dira localize transfers/NAME --truth boxes.csv --as lung_opacity=Pneumonia
    """
    from dira_core.transfer.localize import OVERLAYS, RESULT
    from dira_core.transfer.localize import localize as compare

    folder = out or transfer / "localize"
    names = _pairs(renamed or [])
    found = compare(transfer, truth, folder, renamed=names, overlays=overlays, said=tell)
    for line in tables(found["findings"]):
        typer.echo(line)
    typer.echo(f"result      {folder / RESULT}")
    if overlays:
        typer.echo(f"pictures    {folder / OVERLAYS}")


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for text in texts:
        label, equals, name = text.partition("=")
        if not (label and equals and name):
            raise RecipeError(f"--as takes LABEL=CLASS, got {text!r:.60}")
        if names.setdefault(label, name) != name:
            raise RecipeError(f"--as renames {label!r:.60} twice: to {names[label]!r} or {name!r}?")
    return names


def tables(findings: Mapping[str, Any]) -> Iterator[str]:
    """Lay out the pointing game, then a table for each measure."""
    shown = {printable(name): each for name, each in findings.items()}
    width = max(map(len, shown)) + 2
    yield f"{'':{width}}{'images':>8}{'pointing':>10}{'by chance':>11}{'boxes':>8}{'flat':>6}"
    for name, each in shown.items():
        numbers = f"{each['pointing']:>10.3f}{each['pointing_by_chance']:>11.3f}"
        yield f"{name:{width}}{each['cases']:>8}{numbers}{each['boxes']:>8.2f}{each['flat']:>6}"
    for key, title in (("iobb", "T(IoBB)"), ("iou", "T(IoU)")):
        thresholds = next(iter(shown.values()))[key]["thresholds"]
        yield f"{title:{width + 5}}" + "".join(f"{t:>8g}" for t in thresholds)
        for name, each in shown.items():
            yield f"{name:{width}}Acc  " + _row(each[key]["acc"])
            yield f"{'':{width}}AFP  " + _row(each[key]["afp"])


def _row(values: Sequence[float]) -> str:
    return "".join(f"{value:>8.3f}" for value in values)
