"""Names from data as text that nothing obeys: no terminal, no Markdown."""

from __future__ import annotations

import re

MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!])")


def printable(name: str) -> str:
    """Escape characters a terminal obeys, and bytes of a file name that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def as_markdown(name: str) -> str:
    """Escape what Markdown, HTML in it or a terminal would obey."""
    return MARKDOWN.sub(r"\\\1", printable(name))
