"""A path of a command is never empty, as of an unset variable of a shell: that would be the working directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.cli.given_path import GivenPath
from muse_core.cli.run import main as muse_run


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name))


def test_no_command_takes_an_empty_path() -> None:
    paths = [
        (command.name, option.name, option.type)
        for root in (muse, muse_run) for command in commands(root) for option in command.params
        if isinstance(option.type, click.Path)
    ]
    assert len(paths) > 25
    assert [path[:2] for path in paths if not isinstance(path[2], GivenPath)] == []


@pytest.mark.parametrize(
    "command, arguments, named",
    [
        (muse_run, ["recipe.toml", "--run-dir", ""], "'--run-dir'"),
        (muse, ["report", "run", "-o", ""], "'-o' / '--output'"),
        (muse, ["show", ""], "'[RUNS]...'"),
    ],
)
def test_it_is_refused_by_name(
    command: click.Command, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(command, arguments)
    assert said.exit_code == 2 and f"Invalid value for {named}: it is empty" in said.stderr
    assert not list(tmp_path.iterdir())
