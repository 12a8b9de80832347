"""`dira bench`: how fast is it here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dira_core.cli.config import recipe_flags
from dira_core.layering import Layer
from dira_core.recipe import resolve

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed on this machine, against hand-written loops of the same mathematics."""


@app.command("step")
@recipe_flags
def step(
    asked: list[Layer],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Times each is measured.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a training step with a bare loop, with plain fp32, and with a whole run.

    All are alternated in one process; times are medians, ratios medians of the rounds' ratios.
    """
    from dira_core.bench import step as measure

    found = measure(resolve(asked).recipe, rounds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, ms in found.pop("ms").items():
        typer.echo(f"{name:32}{ms:10.1f} ms")
    for name, value in found.items():
        typer.echo(f"{name:32}{value if isinstance(value, str) else format(value, '10.3f'):>10}")
