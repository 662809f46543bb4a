"""Rows that are the lines of articles, as those of WikiText (Merity et al. 2016), put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

TITLE = re.compile(r"\s*= [^=\s](?:[^=]*[^=\s])? =\s*")
"""A heading of the first level; sections have two signs or more on either side."""


def articles(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(name, text) of rows → name of the first row and text of each article, every row a line with its end.

    An empty row is an empty line, which the hub's rows have lost. A heading counts where the row before it is empty, or
    at the beginning, so that a line of text that looks like one does not.
    """
    lines: list[str] = []
    name, before = "", ""
    for where, text in rows:
        if lines and TITLE.fullmatch(text) and not before.strip() and any(line.strip() for line in lines):
            yield name, "".join(lines)
            lines = []
        if not lines:
            name = where
        lines.append(text if text.endswith("\n") else text + "\n")
        before = text
    if lines:
        yield name, "".join(lines)
