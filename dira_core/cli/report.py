"""`dira report`: one page about a run or a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dira_core.errors import RunFolderError


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a study.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File; by default report.html in the folder.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: curves, health, pictures, tables, costs, provenance.

    It holds no script and asks for nothing from anywhere, so it can be mailed and archived.
    """
    from dira_core.files import write_atomic
    from dira_core.report.page import render
    from dira_core.report.run import run_page
    from dira_core.report.study import study_page
    from dira_core.runfolder import RECIPE
    from dira_core.study.plan import STUDY

    if (folder / STUDY).is_file():
        page = study_page(folder)
    elif (folder / RECIPE).is_file():
        page = run_page(folder)
    else:
        raise RunFolderError(f"{folder} is neither a run nor a study: give the folder of one")
    path = out or folder / "report.html"
    write_atomic(path, render(page).encode())
    typer.echo(f"report      {path}")
