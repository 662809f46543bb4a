"""What commands print, within the columns of a terminal: tables in parts that fit, sentences in lines. Nothing is cut,
and no number is broken; a pipe gets whole lines."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WHOLE = 10_000
"""Columns of a pipe."""
PHRASE = 26
"""Characters up to which a cell stands in one line."""
BETWEEN = 2
"""Columns between two of a table."""


def columns() -> int | None:
    """Columns of the terminal, or as COLUMNS says; None for a pipe, which gets lines as long as they are."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def console() -> Console:
    """Prints what it is given as it stands."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=columns() or WHOLE)


def paragraph(text: str, *, first: str = "", rest: str = "", most: int = WHOLE) -> str:
    """``first`` and the text, in lines of at most ``most`` characters that begin with ``rest`` from the second on. A
    longer word, as a path, stands whole."""
    wrapped = textwrap.wrap(
        " ".join(text.split()), min(columns() or WHOLE, most), initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )
    return "\n".join(wrapped) or first.rstrip()


def print_table(
    to: Console, names: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", keys: int = 1,
    numbers: Sequence[str] = (), phrase: int = PHRASE,
) -> None:
    """A table of cells in one line each, or, where that does not fit, in parts one below the other, each of which
    begins with the first ``keys`` columns. Columns named in ``numbers`` stand to the right. Cells of more than
    ``phrase`` characters are text, which wraps between words.
    """
    cells = [[name, *(row[place] for row in rows)] for place, name in enumerate(names)]
    least = [_least(column, phrase) for column in cells]
    parts = _parts(least, to.width, keys)
    for number, part in enumerate(parts):
        most = [max(map(len, cells[place])) for place in part]
        widths = _widths([least[place] for place in part], most, to.width)
        to.print(_table(title if number == 0 else "", names, rows, part, widths, numbers))
        if number + 1 < len(parts):
            to.print()


def _parts(least: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Places of the columns that stand side by side."""
    first = list(range(keys))
    used = sum(least[place] + BETWEEN for place in first)
    parts, filled = [first[:]], used
    for place in range(keys, len(least)):
        needed = least[place] + BETWEEN
        if filled + needed > width and len(parts[-1]) > keys:
            parts.append(first[:])
            filled = used
        parts[-1].append(place)
        filled += needed
    return parts


def _least(cells: Sequence[str], phrase: int) -> int:
    """Columns that a column takes when its name wraps between words, and its cells do where they are text."""
    name, *values = cells
    lines = [*name.split(), *(word for one in values for word in (one.split() if len(one) > phrase else [one]))]
    text = any(len(one) > phrase and " " in one for one in values)
    return max([phrase if text else 0, *map(len, lines)])


def _widths(least: Sequence[int], most: Sequence[int], width: int) -> list[int]:
    """What each column gets: what it needs, and what is left where it has use for it, from the first on. Where even the
    least does not fit, the widest gives way, and its words are broken."""
    found = list(least)
    spare = width - sum(found) - BETWEEN * len(found)
    for place, wanted in enumerate(most):
        if spare < 0 and found[place] == max(found):
            found[place] = max(found[place] + spare, 1)
            spare = 0
        more = min(max(spare, 0), wanted - found[place])
        found[place] += more
        spare -= more
    return found


def _table(
    title: str, names: Sequence[str], rows: Sequence[Sequence[str]], part: Sequence[int], widths: Sequence[int],
    numbers: Sequence[str],
) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, header_style="dim")
    for place, width in zip(part, widths, strict=True):
        justify = "right" if names[place] in numbers else "left"
        table.add_column(names[place], justify=justify, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in part))
    return table
