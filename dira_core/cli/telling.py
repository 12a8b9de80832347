"""Lines for a terminal, whatever names are in them."""

from __future__ import annotations

import typer


def tell(text: str, *, err: bool = False) -> None:
    """Print lines in which nothing is left that a terminal would obey: names come from data."""
    from dira_core.data.folder import printable  # reads files, with all that this needs

    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)
