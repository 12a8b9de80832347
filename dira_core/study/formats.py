"""Tables as Markdown, LaTeX and HTML; names from outside are escaped in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dira_core.escaping import as_markdown, printable
from dira_core.study.tables import Table, Text

TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "<": "$<$",
    ">": "$>$",
    **{character: f"{{{character}}}" for character in "[]*"},  # after a line's end they are options
}


def markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown."""
    return "\n\n".join(map(_markdown, tables)) + "\n"


def _markdown(table: Table) -> str:
    lines = [f"## {_plain(table.title)}", "", _row(map(_plain, table.header))]
    lines.append(_row(["---"] * len(table.header)))
    lines += [
        _row(_wrapped(cell, _plain(cell.text), "**{}**", "_{}_") for cell in row)
        for row in table.rows
    ]
    return "\n".join([*lines, *(["", _plain(table.note)] if table.note else [])])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return as_markdown(" ".join(text.split()))


def latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX; they need no package but amssymb."""
    return "\n\n".join(map(_latex, tables)) + "\n"


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    rows = [
        line([_wrapped(c, _tex(c.text), r"\textbf{{{}}}", r"\underline{{{}}}") for c in row])
        for row in table.rows
    ]
    return "\n".join(
        [
            r"\begin{table}\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(table.header) - 1)}}}\hline",
            line([*map(_tex, table.header)]) + r"\hline",
            *rows,
            r"\hline\end{tabular}\end{table}",
        ]
    )


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in printable(" ".join(text.split())))


def html(tables: Sequence[Table]) -> str:
    """Return tables as a piece of HTML."""
    return "\n".join(map(_html, tables))


def _html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    rows = [
        line([_wrapped(c, escape(c.text), "<b>{}</b>", "<u>{}</u>") for c in row], "td")
        for row in table.rows
    ]
    head = line([*map(escape, table.header)], "th")
    caption = f"<h3>{escape(table.title)}</h3>"
    body = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    return f'{caption}{body}<p class="note">{escape(table.note)}</p>'


def _wrapped(cell: Text, text: str, best: str, second: str) -> str:
    return best.format(text) if cell.best else second.format(text) if cell.second else text
