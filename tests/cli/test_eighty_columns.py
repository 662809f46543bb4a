"""Within 80 columns nothing is cut and no number is broken; a pipe gets whole lines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from muse_core.cli import muse
from muse_core.cli.eval import _show
from muse_core.cli.printed import print_table
from muse_core.cli.run import main

Says = Callable[..., tuple[str, str]]


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}")


def test_no_help_is_wider() -> None:
    found = [*commands(muse, "muse"), ("muse-run", main)]
    assert {"muse gates", "muse compare", "muse show", "muse plugins list"} <= {path for path, _ in found}
    for path, command in found:
        wide = [line for line in CliRunner().invoke(command, ["--help"]).output.splitlines() if len(line) > 80]
        assert not wide, (path, wide)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """What a command prints within 80 columns, and into a pipe."""
    def of(*arguments: str) -> tuple[str, str]:
        told = []
        for columns in ("80", None):
            monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
            result = CliRunner().invoke(muse, arguments)
            assert result.exit_code == 0, result.output
            told.append(result.stdout)
        return told[0], told[1]

    return of


def words(text: str) -> list[str]:
    return sorted(set(re.sub(r"[|]", " ", text).split()))


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",), ("plugins", "list"), ("plugins", "show", "fast-weights"), ("plugins", "show", "muse-core"),
        ("eval", "RUN", "--suite", "held-out,length,recall,mqar,importance", "--tokens", "512", "--samples", "1"),
        ("diagnose", "RUN", "--tokens", "64"), ("show", "RUN", "OTHER"),
    ],
    ids=" ".join,
)
def test_what_a_pipe_gets_is_there_word_by_word(
    says: Says, finished_run: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    other = tmp_path / "another"
    shutil.copytree(finished_run, other)
    narrow, whole = says(*(str({"RUN": finished_run, "OTHER": other}.get(one, one)) for one in arguments))
    wide = [line for line in narrow.splitlines() if len(line.rstrip()) > 80 and len(line.split()) > 2]
    assert not wide, wide  # a path may be longer
    changing = r"GiB|[\d.]+ s\b"
    lost = [one for one in words(whole) if one not in words(narrow) and not re.search(changing, one)]
    assert lost == [one for one in lost if "/" in one], "paths may break, in tables"


def printed(width: int, names: list[str], rows: list[list[str]], **more: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as got:
        print_table(console, names, rows, **more)
    return got.get()


def test_a_table_that_does_not_fit_goes_on_below_with_its_keys() -> None:
    names = ["text", "length", *(f"number {index} per token" for index in range(9))]
    numbers = [f"{index}.12345678" for index in range(9)]
    rows = [[text, length, *numbers] for text in ("a", "b") for length in ("1", "2")]
    for width in (30, 80, 400):
        lines = printed(width, names, rows, keys=2).splitlines()
        assert max(map(len, lines)) <= width
        starts = [line.split() for line in lines if re.search(r"\.\d", line)]
        parts = len(starts) // 4
        assert parts == {30: 9, 80: 2, 400: 1}[width] and [one[:2] for one in starts] == parts * [
            ["a", "1"], ["a", "2"], ["b", "1"], ["b", "2"]
        ]
        assert [number for one in starts[::4] for number in one[2:]] == numbers


def test_text_wraps_between_words_and_a_long_name_within() -> None:
    reason = "the text has 77 different tokens and 128 are needed"
    lines = printed(40, ["name", "skipped"], [["q" * 50, reason]]).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("q") == 50 and set(reason.split()) <= set(" ".join(lines).split())


@pytest.mark.parametrize("reason", ["no layer", "needs text, and the run's data is a task: " + "leave it out " * 9])
def test_a_suite_that_was_left_out_says_why(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no column that tells rows apart."""
    _show({"run": "runs/a", "step": 1, "suites": {"importance": [{"skipped": reason}]}})
    assert set(reason.split()) < set(capsys.readouterr().out.split())
