"""Names of files, classes and findings come from data: no output may let them do anything."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from dira_core.builtins import FolderOptions
from dira_core.cli import main
from dira_core.cli.telling import tell
from dira_core.data.folder import FolderSource
from dira_core.errors import DataError
from dira_core.escaping import FORMULA, printable, text_cell
from dira_core.exports.card import card
from dira_core.exports.networks import Written
from dira_core.study import results
from dira_core.study.formats import html, latex, markdown
from dira_core.study.jobs import Cell
from dira_core.study.tables import Table, Text
from dira_core.targets import Labels
from dira_core.transfer.scoring import csv_text, score_labels
from dira_core.weightfiles import Header

PAYLOADS = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "' onmouseover='alert(1)",
    "<!-- hidden",
    "]]><svg onload=alert(1)>",
    "[link](javascript:alert(1))",
    "![pixel](http://x/y.png)",
    "`code` **bold** _line_",
    "a|b|c\n---|---",
    "# title\n\n- list",
    "[red]text[/red] [link=http://x]y[/link]",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://x\x07y\x1b]8;;\x07",
    "back\x08\x08\rover",
    "\x9b31m one byte",
    "right\u202eto left",
    "=cmd|' /C calc'!A0",
    "+1+cmd|calc",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    r"\input{/etc/passwd}",
    "100% & $x_1^2$ ~ {a} # \\",
    '"); import os; ("',
]


def of_terminals(text: str) -> list[str]:
    """Return the characters that a terminal, or who reads it, would not see as they are."""
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_terminal_shows_names_and_obeys_none(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(f"class {name} [cpu]")
    said = capsys.readouterr().out
    assert not of_terminals(said)
    assert said.endswith("[cpu]\n")

    def raising() -> None:
        raise DataError(f"nothing in {name}")

    monkeypatch.setattr("dira_core.cli.command_line", lambda: lambda prog_name: raising())
    with pytest.raises(SystemExit, match="3"):
        main()
    assert not of_terminals(capsys.readouterr().err)


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_cell_of_a_table_is_a_formula_or_breaks_a_line(name: str, tmp_path: Path) -> None:
    file = name.replace("/", "")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{file}.png")
    source = FolderSource(FolderOptions(path=tmp_path))
    target = Labels(source, [name, "other"], None, ["p"], np.array([[1.0, 0.0]]), exclusive=True)
    predicted = score_labels(target, np.array([0]), np.array([[0.7, 0.3]]))
    predicted.rows.append([text_cell(name)])
    header, line, finding = csv.reader(io.StringIO(csv_text(predicted), newline=""))
    assert header[:4] == ["image", "patient", f"label {printable(name)}", "label other"]
    for cell in (*header, *line, *finding):
        assert not cell.startswith((*FORMULA, "\t", "\r"))
    assert finding[0] in (printable(name), f"'{printable(name)}")


@pytest.mark.parametrize("name", PAYLOADS)
def test_scores_of_a_study_name_what_a_spreadsheet_does_not_obey(name: str) -> None:
    cell = Cell(name, "di", name, "fine-tune", 0.1, 0)
    outcome = results.Outcome(
        cell, "fine-tune", {name: 0.5, f"auc {name}": None}, [], Path(), 0, 1.0
    )
    header, *lines = csv.reader(io.StringIO(results.csv_text([outcome]), newline=""))
    assert header[-3:] == ["features", "score", "value"]
    assert [line[-1] for line in lines] == ["0.5", ""]
    assert lines[0][0] in (printable(name), f"'{printable(name)}")
    assert not [each for line in lines for each in line if each.startswith((*FORMULA, "\t", "\r"))]


def parsed(name: str, kind: str) -> list[str]:
    """Return the kinds of what Markdown with this name in it consists of, but for text."""
    if kind == "tables":
        text = markdown([Table(name, [name, "b"], [[Text(name), Text(name)]], name)])
    else:
        header = Header(channels=1, size=8, backbone={"name": "resnet18"}, origin=name)
        file = name.replace("/", "").replace("\n", " ")
        text = card(header, "timm", file, Written([], 0.0, "code", "note")).split("---\n", 2)[2]
    assert not of_terminals(text)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inner = [child.type for token in tokens for child in token.children or ()]
    return [kind for kind in [*(t.type for t in tokens), *inner] if not kind.startswith("text")]


@pytest.mark.parametrize("kind", ["tables", "card"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_markdown_of_studies_and_model_cards_holds_names_as_text(name: str, kind: str) -> None:
    assert parsed(name, kind) == parsed("plain", kind)


@pytest.mark.parametrize("name", PAYLOADS)
def test_latex_of_a_study_holds_names_as_text(name: str) -> None:
    text = latex([Table(name, [name, "b"], [[Text(name), Text(name)]] * 2, name)])
    assert not of_terminals(text)
    known = r"\\(begin|end)\{(table|tabular)\}|\\(caption|centering|hline)\b|\{lc\}| & | \\\\"
    known += r"|\\text(backslash|asciitilde|asciicircum)\{\}|\$[<>]\$|\\[&%$#_{}]|\{[\[\]*]\}"
    assert not re.search(r"[\\&%$#_^~]", re.sub(known, "", text))
    assert not re.search(r"\\\\\s*[\[*]", text)  # what would be an option of a line's end
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.parametrize("name", PAYLOADS)
def test_html_of_a_study_has_no_tag_of_a_name(name: str) -> None:
    own = html([Table("t", ["a", "b"], [[Text("c"), Text("d")]], "n")])
    text = html([Table(name, [name, name], [[Text(name), Text(name)]], name)])
    assert re.findall(r"<[^>]*>", text) == re.findall(r"<[^>]*>", own)
