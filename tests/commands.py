"""Commands in this process, for tests."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def called(command: click.Command, *arguments: object) -> Result:
    """What the command said and its exit code; every argument is handed on as text."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])
