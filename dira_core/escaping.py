"""Names from data as text that nothing obeys: no terminal, no Markdown, no spreadsheet."""

from __future__ import annotations

import re
from collections.abc import Iterable

MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!])")

FORMULA = ("=", "+", "-", "@")
"""What makes a program for tables take a cell for a formula."""


def printable(name: str) -> str:
    """Escape characters a terminal obeys, and bytes of a file name that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def first_few(names: Iterable[str], most: int = 5) -> str:
    """Name so many, printable, and count the others."""
    every = [printable(name) for name in names]
    shown = ", ".join(every[:most])
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def as_markdown(name: str) -> str:
    """Escape what Markdown, HTML in it or a terminal would obey."""
    return MARKDOWN.sub(r"\\\1", printable(name))


def text_cell(text: str) -> str:
    """Return a text from a file, printable; what looks like a formula gets an apostrophe before."""
    return f"'{printable(text)}" if text.lstrip().startswith(FORMULA) else printable(text)
