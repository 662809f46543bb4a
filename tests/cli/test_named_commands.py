"""A command that a message names can be typed as it stands, whatever the path in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from muse_core.errors import typed

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(
    r"muse-run $|muse (?:plugins check|compare|compress|diagnose|eval|export|generate|report|show) $"
    r"|pip install(?: -e)? $|--(?:resume|locked) $"
)
"""What stands before a path that a person is to type."""


def paths_in_commands(source: str) -> Iterator[tuple[int, str]]:
    """Line and expression of whatever an f-string puts behind a command."""
    for node in ast.walk(ast.parse(source)):
        for before, put in zip(node.values, node.values[1:]) if isinstance(node, ast.JoinedStr) else ():
            told = before.value if isinstance(before, ast.Constant) else ""
            if isinstance(put, ast.FormattedValue) and COMMAND.search(told):
                yield put.lineno, ast.unparse(put.value)


def test_paths_in_commands_that_messages_name_are_quoted() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}": expression
        for folder in ("muse_core", "plugins", "kernels")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if "tests" not in file.parts and "promises" not in file.parts
        for line, expression in paths_in_commands(file.read_text(encoding="utf-8"))
    }
    assert len(found) >= 15  # the search finds them
    bare = {place: expression for place, expression in found.items() if not expression.startswith("typed(")}
    assert set(bare.values()) <= {"_line(config)"}, bare  # requirements, no path


@pytest.mark.parametrize(("path", "written"), [
    ("runs/one", "runs/one"), ("my runs/one", "'my runs/one'"), ("a$b", "'a$b'"), (Path("it's"), """'it'"'"'s'"""),
])
def test_a_path_is_quoted_where_a_shell_would_take_it_apart(path: str | Path, written: str) -> None:
    assert typed(path) == written
