"""Lines for a terminal, whatever names are in them."""

from __future__ import annotations

import typer

from dira_core.escaping import printable


def tell(text: str, *, err: bool = False) -> None:
    """Print lines in which nothing is left that a terminal would obey: names come from data."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)
