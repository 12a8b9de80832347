"""The command line: the engine's verbs and those of plugins. Heavy imports stay in their bodies."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dira_core import __version__
from dira_core.cli import (
    bench,
    config,
    data,
    localize,
    plugins,
    report,
    run,
    study,
    transfer,
    verify,
    weights,
)
from dira_core.cli.telling import tell
from dira_core.components import Command
from dira_core.errors import DiraError
from dira_core.loading import said
from dira_core.plugins import installed

INTERRUPTED = 130
"""What typer leaves with after Ctrl-C."""


def main() -> None:
    """Run the command line; an error a user can mend is one plain line and its exit code."""
    try:
        command_line()(prog_name="dira")
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            tell("interrupted; what was saved stays, and --help says how to go on", err=True)
        raise
    except DiraError as error:
        # no markup: rich would swallow "[cpu]"
        tell(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def command_line() -> typer.Typer:
    """Build the application: the engine's verbs, then those of plugins."""
    app = typer.Typer(
        name="dira",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(top)
    app.command("run")(run.run)
    app.command("verify")(verify.verify)
    app.command("config")(config.config)
    app.command("transfer")(transfer.transfer)
    app.command("targets")(transfer.targets)
    app.command("localize")(localize.localize)
    app.command("study")(study.study)
    app.command("report")(report.report)
    app.command("export")(weights.export)
    app.command("import")(weights.import_)
    app.add_typer(plugins.app, name="plugins")
    app.add_typer(data.app, name="data")
    app.add_typer(bench.app, name="bench")
    ours = {verb.name for verb in app.registered_commands}
    ours |= {group.name for group in app.registered_groups}
    for command in installed().commands():
        wrong = "the engine has a verb of that name" if command.name in ours else _flaw(command)
        if wrong:
            typer.echo(f"warning: the verb {command.name!r} is left out: {wrong}", err=True)
        elif isinstance(command.function, typer.Typer):
            app.add_typer(command.function, name=command.name, help=command.summary)
        else:
            app.command(command.name, help=command.summary)(command.function)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dira {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Pretrain image encoders on unlabelled medical images."""


def _flaw(command: Command) -> str | None:
    """Return why typer cannot read a plugin's function, or None."""
    alone = typer.Typer()
    if isinstance(command.function, typer.Typer):
        alone.add_typer(command.function, name=command.name)
    else:
        alone.command(command.name)(command.function)
    try:
        typer.main.get_command(alone)
    except Exception as error:
        return said(error)
    return None
