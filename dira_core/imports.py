"""Weights of other programs as weights of dira."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dira_core.components import Kind
from dira_core.errors import CheckpointError, DiraError, RecipeError
from dira_core.export import build, write_parts
from dira_core.files import writing
from dira_core.plugins import installed
from dira_core.roles import Backbone, Restorer
from dira_core.seen import hand_on
from dira_core.transplant import Report, families, load_into, some, stem_of
from dira_core.weightfiles import UNSAID, Header, Parts, joined, read_weights

GREY, CROP = 1, 224
"""Channels and size where neither the user nor the file says them: those of the default recipe."""


@dataclass(frozen=True)
class Imported:
    """What was taken over.

    Attributes:
        weights: The folder written.
        header: What its files say.
        reports: By part: "backbone", "restorer".
        left_out: Names that belong to neither.
        near: The Restorer that a decoder left out is closest to, and what stands in its way.
    """

    weights: Path
    header: Header
    reports: Mapping[str, Report]
    left_out: tuple[str, ...]
    near: str = ""

    def lines(self) -> Iterator[str]:
        """Yield what was matched, adapted and left out."""
        for part, report in self.reports.items():
            chosen = self.header.backbone if part == "backbone" else self.header.restorer
            assert chosen is not None
            yield f"{part:<10} {report.summary(chosen['name'])}"
            for name, how in report.adapted.items():
                yield f"adapted    {name}: {how}; a grey image gives the same maps as before"
            if report.unexpected:
                yield f"unexpected {families(report.unexpected)}"
        if self.left_out:
            yield f"left out   {families(self.left_out)}"
        if self.near:
            yield f"decoder    fits no Restorer, closest is {self.near}"


def import_weights(
    path: Path,
    out: Path,
    network: str | None = None,
    channels: int | None = None,
    size: int | None = None,
) -> Imported:
    """Read weights of any origin and write them as `dira_core.load` reads them.

    Args:
        path: A file, or a folder of dira's own weights.
        out: Folder to write; `weights` is made in it.
        network: Name of the backbone; None takes what the file says, or what its blocks say.
        channels: Of the images it is to read; None takes what the file says, or 1.
        size: Side of a crop in px, noted for whoever prepares images; None as for `channels`.

    Raises:
        CheckpointError: There are no weights that can be trusted, or the encoder is not whole.
        RecipeError: It is not known which network it is, or there are weights in `out` already.
    """
    weights = out / "weights"
    if weights.exists():
        raise RecipeError(f"{weights} is there already: use another --out")
    parts = read_weights(path)
    said = parts.header or Header(channels=GREY, size=CROP, preprocessing=UNSAID, imported=True)
    chosen = _backbone(parts, network, path)
    backbone: Backbone = build("backbone", chosen, channels or said.channels, said.dims)
    report = load_into(parts.backbone, backbone, stem_of(backbone))
    if not report.complete:
        raise CheckpointError(
            f"{path} does not hold backbone {chosen['name']!r} ({report.differences()}): name "
            "another with --backbone; nothing is ever filled up at random"
        )
    tried = list(_restorers(parts, said, backbone)) if parts.restorer else []
    found = next((one for one in tried if one.report.exact), None)
    header = Header(
        channels=backbone.in_channels,
        size=size or said.size,
        preprocessing=said.preprocessing,
        dims=said.dims,
        window=said.window,
        spacing=said.spacing,
        backbone=chosen,
        restorer=found.chosen if found else None,
        origin=path.name,
        imported=said.imported,
    )
    with writing(out):
        write_parts(weights, backbone, found.restorer if found else None, header)
        hand_on(path, out)
    reports = {"backbone": report} | ({"restorer": found.report} if found else {})
    if found:
        return Imported(weights, header, reports, parts.left_out)
    left_out = parts.left_out + tuple(joined({}, parts.restorer))
    return Imported(weights, header, reports, left_out, _closest(tried))


@dataclass(frozen=True)
class _Found:
    chosen: dict[str, Any]
    restorer: Restorer
    report: Report


def _backbone(parts: Parts, network: str | None, path: Path) -> dict[str, Any]:
    said = parts.header.backbone if parts.header is not None else None
    if said is not None and network in (None, said.get("name")):
        return said
    name = network or parts.network
    if name is None:
        raise RecipeError(
            f"{path} does not say which network it holds: name it with --backbone, or take off "
            f"what stands before its names ({some(list(parts.backbone))})"
        )
    return _default("backbone", name)


def _restorers(parts: Parts, said: Header, backbone: Backbone) -> Iterator[_Found]:
    """Yield the restorer the file names, then those installed, up to one that fits exactly."""
    names = [c.name for c in installed().components("restorer") if said.dims in c.dims]
    for chosen in [said.restorer, *(_default("restorer", name) for name in names)]:
        try:
            restorer: Restorer = build("restorer", chosen or {}, backbone)
        except DiraError:
            continue  # one that does not work on this backbone, or not at all
        report = load_into(parts.restorer, restorer)
        yield _Found(chosen or {}, restorer, report)
        if report.exact:
            return


def _closest(tried: Sequence[_Found]) -> str:
    """Return which restorer takes most of a decoder, and what stands in its way; "" of none."""
    if not tried:
        return ""
    best = max(tried, key=lambda found: len(found.report.matched))
    return f"{best.chosen['name']!r} ({best.report.differences()})"


def _default(kind: Kind, name: str) -> dict[str, Any]:
    """Return a component with its default options, those that have one."""
    options = installed().find(kind, name).options
    defaults = options.model_construct().model_dump(mode="json")
    return {"name": name, **defaults}
