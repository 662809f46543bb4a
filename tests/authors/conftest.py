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


@pytest.fixture(scope="session")
def python() -> Process:
    """Runs Python with arguments and captures what it prints; ``site`` goes to the front of its path, ``given`` to its
    standard input."""

    def call(
        *arguments: object, cwd: Path, site: Path | None = None, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MUSE_"))}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"MUSE_CACHE": str(cwd / "cache"), "MUSE_REPORT": "0"}
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
