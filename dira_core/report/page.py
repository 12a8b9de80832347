"""What a report shows, as data, and the page that a template makes of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image as PillowImage


@dataclass(frozen=True)
class Chart:
    """A chart: what it shows, and its SVG, in which text is escaped already."""

    title: str
    drawn: Markup


@dataclass(frozen=True)
class Tile:
    """A picture as a data URI, with a line below it."""

    data: str
    label: str = ""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures below the names of their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Tile]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its title.
        note: A line below it.
        facts: Names and values.
        charts: Beside each other.
        pictures: Below each other.
        wide: Whether pictures are pairs, and shown larger.
        tables: HTML, in which text is escaped already.
    """

    title: str
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Pictures] = ()
    wide: bool = False
    tables: Markup = field(default_factory=Markup)


@dataclass(frozen=True)
class Page:
    """All of a report."""

    title: str
    about: str
    sections: Sequence[Section]
    alarms: Sequence[str] = ()


def render(page: Page) -> str:
    """Return the page as HTML; whatever is text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page=page)


def tile(pixels: np.ndarray[Any, Any], label: str = "") -> Tile:
    """Embed a picture, (H, W) or (H, W, 3) uint8, as PNG."""
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return embedded(file.getvalue(), label)


def png(path: Path) -> Tile:
    """Embed a PNG file."""
    return embedded(path.read_bytes(), "")


def embedded(data: bytes, label: str) -> Tile:
    """Return the bytes of a PNG file as a data URI."""
    return Tile(f"data:image/png;base64,{base64.b64encode(data).decode()}", label)
