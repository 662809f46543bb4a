"""Plugins of every kind as ``muse plugins new`` writes them, and the command line in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.kinds import KINDS
from muse_core.testing import warm

Process = Callable[..., subprocess.CompletedProcess[str]]


def name_of(kind: str) -> str:
    """What the plugin of a kind is called in these tests."""
    return "our-" + kind.replace(" ", "-")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind → the folder of a new plugin of it."""
    parent = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        ended = CliRunner().invoke(muse, ["plugins", "new", name_of(kind), "--kind", kind, "--into", str(parent)])
        assert ended.exit_code == 0, ended.output
    return {kind: parent / f"muse-{name_of(kind)}" for kind in KINDS}


def surroundings(cwd: Path) -> dict[str, str]:
    """Variables of a process that works in this folder; a report takes seconds, and tests/report asks for it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MUSE_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return environment | {"MUSE_CACHE": str(cwd / "cache"), "MUSE_REPORT": "0"}


@pytest.fixture(scope="session")
def python() -> Process:
    """Runs Python with arguments and captures what it prints; ``site`` goes to the front of its path, ``given`` to its
    standard input."""

    def call(
        *arguments: object, cwd: Path, site: Path | None = None, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        environment = surroundings(cwd)
        if site is not None:
            environment["PYTHONPATH"] = str(site)
        line = [sys.executable, *map(str, arguments)]
        return warm.run(
            line, cwd=cwd, env=environment, input=given, capture_output=True, text=True, timeout=500, check=False
        )

    return call


@pytest.fixture(scope="session")
def muse_check(python: Process) -> Process:
    """``muse plugins check`` with these arguments."""
    command = "from muse_core.cli import muse; muse()"
    return lambda *arguments, **where: python("-c", command, "plugins", "check", *arguments, **where)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Process:
    """``muse plugins check`` in this process; the one that it starts for the checks need not import torch."""

    def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        ended: list[subprocess.CompletedProcess[str]] = []

        def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
            line = [word for word in command if word != "-P"]  # no module lies in the folder
            ended.append(warm.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=check))
            return ended[0]

        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", surroundings(cwd))
            patch.setattr(subprocess, "run", run)
            code = CliRunner().invoke(muse, ["plugins", "check", *map(str, arguments)]).exit_code
        assert code == ended[0].returncode
        return ended[0]

    return call
