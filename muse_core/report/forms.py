"""Tables in the forms that other programs and papers take. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muse_core.report.tables import Table
from muse_core.storage.canonical_json import spelled
from muse_core.storage.disk import Disk, storage_errors, write_file_atomically

NUMBER = re.compile(r"[-+−]?[\d,]+(\.\d+)?(e[-+]?\d+)?( to [-+−]?[\d,.]+)?")
"""A cell that is set to the right."""
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "×": r"$\times$", "–": "--", "−": "$-$", "\n": " ", "\r": " ",
}


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of plain values with their keys as header: numbers with all their digits, nothing for None."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    written = io.StringIO()
    writer = csv.DictWriter(written, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |\n"

    marks = ["---:" if right else "---" for right in _right(table)]
    return "".join([line(table.columns), f"|{'|'.join(marks)}|\n", *map(line, table.rows)])


def latex(table: Table) -> str:
    """A ``tabular`` with the rules of the package booktabs; what LaTeX would read as commands is escaped."""
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(one, one) for one in cell) for cell in cells) + " \\\\"

    columns = "".join("r" if right else "l" for right in _right(table))
    return "\n".join([
        "% \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", line(table.columns), "\\midrule",
        *map(line, table.rows), "\\bottomrule", "\\end{tabular}", "",
    ])


def write_forms(
    folder: Path, report: Mapping[str, Any], page: str, rows: Sequence[Mapping[str, Any]], table: Table
) -> None:
    """``report.json``, ``report.md`` with the text ``page``, ``report.csv`` of ``rows`` and ``report.tex`` of
    ``table``, each of them whole. Raises StorageError for a folder that takes no files."""
    texts = {
        "report.json": json.dumps(spelled(report), indent=2, allow_nan=False) + "\n", "report.md": page,
        "report.csv": csv_of(rows), "report.tex": latex(table),
    }
    for name, text in texts.items():
        with storage_errors("write the report", folder / name):
            write_file_atomically(Disk(), folder / name, text.encode())


def _right(table: Table) -> list[bool]:
    """Of each column whether it holds numbers alone."""
    columns = [[row[at] for row in table.rows if row[at]] for at in range(len(table.columns))]
    return [bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
