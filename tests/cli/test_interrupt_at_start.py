"""Ctrl-C before a command works, while Python still imports it: one line and exit code 130, as later. And signals whose
exception is lost on the way, as torch loses those of what its C++ imports."""

from __future__ import annotations

import signal
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

TINY = """\
name = "x"
data = { use = "state-of-the-union", tokenizer = "bytes" }
[model]
width = 16
depth = 1
block = ["feed-forward"]
[train]
steps = 2
"""


PLAN = """\
name = "p"
baseline = "one"
seeds = [1]
arms = [{ name = "one", recipe = "x.toml" }, { name = "other", recipe = "x.toml", set = ["model.depth=2"] }]
"""


@pytest.mark.parametrize("module", [
    "click", "muse_core.cli.errors", "muse_core.recipe", "torch", "torch.functional", "numpy", "numpy.linalg",
])
def test_training(module: str, tmp_path: Path) -> None:
    ended(module, "muse-run", "x.toml", folder=tmp_path)


@pytest.mark.parametrize("module, arguments", [
    ("click", ["--help"]),
    ("muse_core.cli.plugins", ["plugins", "list"]),
    ("muse_core.cli.gates", ["gates", "x.toml"]),
    ("muse_core.cli.printed", ["eval", "run"]),
    ("torch", ["gates", "x.toml"]),
    ("torch.functional", ["gates", "x.toml"]),
    *((module, command) for module in ("numpy", "numpy.linalg") for command in (
        ["generate", "run", "--prompt", "a"], ["eval", "run"], ["diagnose", "run"], ["export", "run", "new"],
        ["import", "x.toml", "run", "new"], ["compress", "run"], ["report", "run"], ["lm-eval", "run"],
        ["gates", "x.toml"], ["cost", "x.toml"], ["compare", "p.toml"], ["doctor"], ["selftest"], ["bench", "kernels"],
        ["plugins", "check", "muse-baseline"],
    )),
])
def test_other_commands(module: str, arguments: list[str], tmp_path: Path) -> None:
    ended(module, "muse", *arguments, folder=tmp_path)


def ended(module: str, command: str, *arguments: str, folder: Path) -> None:
    (folder / "x.toml").write_text(TINY)
    (folder / "p.toml").write_text(PLAN)
    for name in ("recipe.toml", "muse.lock.toml"):  # a run as far as it is looked at before torch is imported
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / name).write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-c", START, module, command, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


LOST = """\
import os, signal, sys
import muse_core.cli.launch as place
from muse_core.cli.run import main

real = place._set_up

def lost(*given):
    try:
        os.kill(os.getpid(), {number})
    except BaseException:
        pass
    {then}

place._set_up = lost
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number, said", [(signal.SIGTERM, "terminated\n"), (signal.SIGINT, "interrupted\n")])
def test_what_follows_a_signal_that_was_lost_is_no_failure(number: signal.Signals, said: str, tmp_path: Path) -> None:
    done = lost(number, "raise AttributeError('half of a library')", tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, said), done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_stops_for_a_signal_that_was_lost(number: signal.Signals, tmp_path: Path) -> None:
    done = lost(number, "return real(*given)", tmp_path)
    assert done.returncode == 128 + number and "everything is saved" in done.stderr, done
    assert "Traceback" not in done.stderr


def lost(number: signal.Signals, then: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a run does that has had the signal while it was set up, and went on."""
    (folder / "x.toml").write_text(TINY)
    program = LOST.format(number=int(number), then=then)
    return subprocess.run(
        [sys.executable, "-c", program, "x.toml", "--run-dir", "run"], cwd=folder, capture_output=True, text=True
    )
