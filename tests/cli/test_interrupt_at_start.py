"""Ctrl-C before a command works, while Python still imports it: one line and exit code 130, as later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

START = """\
import os, signal, sys
from importlib.metadata import entry_points

class Interrupt:
    "Sends this process SIGINT when the module of this name is looked for."
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path, target=None):
        if name == self.name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

name, command, *sys.argv[1:] = sys.argv[1:]
script, = entry_points(group="console_scripts", name=command)
begin = script.load()
sys.meta_path.insert(0, Interrupt(name))
begin()
"""


@pytest.mark.parametrize("module", ["click", "muse_core.cli.errors", "muse_core.recipe", "torch", "torch.functional"])
def test_training(module: str, tmp_path: Path) -> None:
    ended(module, "muse-run", "x.toml", folder=tmp_path)


@pytest.mark.parametrize("module, arguments", [
    ("click", ["--help"]),
    ("muse_core.cli.plugins", ["plugins", "list"]),
    ("muse_core.cli.gates", ["gates", "x.toml"]),
    ("muse_core.cli.printed", ["eval", "run"]),
    ("torch", ["gates", "x.toml"]),
    ("torch.functional", ["gates", "x.toml"]),
])
def test_other_commands(module: str, arguments: list[str], tmp_path: Path) -> None:
    ended(module, "muse", *arguments, folder=tmp_path)


def ended(module: str, command: str, *arguments: str, folder: Path) -> None:
    (folder / "x.toml").write_text(
        'name = "x"\ndata = { use = "state-of-the-union", tokenizer = "bytes" }\n'
        '[model]\nwidth = 16\ndepth = 1\nblock = ["feed-forward"]\n[train]\nsteps = 2\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", START, module, command, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
