"""CPU time of ``muse-run --help`` and ``muse plugins list``, alone and beside 50 made-up plugins.

    python tests/benchmarks/startup.py [--runs 20] [--others 50]

Goals on an idle machine: 120 ms and 200 ms of CPU with the bundled plugins, and at most twice that with 50 more. The
smallest of the runs counts, since other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "muse-run --help": "from muse_core.cli.run import main; main(['--help'])",
    "muse plugins list": "from muse_core.cli import muse; muse(['plugins', 'list'])",
}

PLUGIN = """import attrs
from attrs import field, validators

from muse_core.component import Component
from muse_core.hookspecs import hookimpl


@attrs.frozen(kw_only=True)
class Options:
    '''Layer number {number}.'''

    size: int = field(default=4, validator=validators.ge(1))
    '''Its size.'''
    gain: float = 1.0
    '''Its gain.'''


@hookimpl
def muse_layers():
    yield Component("made-up-{number}", options=Options, implementation="made_up_{number}:Layer")
"""


def make_plugins(folder: Path, count: int) -> None:
    """Installs ``count`` distributions into a folder."""
    for number in range(count):
        (folder / f"made_up_{number}.py").write_text(PLUGIN.format(number=number))
        info = folder / f"made_up_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: made-up-{number}\nVersion: 1.0\nRequires-Dist: muse-core>=0.2,<0.3\n")
        (info / "entry_points.txt").write_text(f"[muse.v2]\nmade-up-{number} = made_up_{number}\n")


def cpu_milliseconds(code: str, folder: Path) -> float:
    """User and system time of one process."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed: {code}")
    return 1e3 * (usage.ru_utime + usage.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--others", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as crowded:
        make_plugins(Path(crowded), arguments.others)
        print(f"{'command':<20}{'bundled, ms':>13}{f'with {arguments.others} more':>15}{'ratio':>7}")
        for command, code in COMMANDS.items():
            # In turns, so that other work on the machine falls on both; the first pair writes byte code.
            pairs = [(cpu_milliseconds(code, Path(alone)), cpu_milliseconds(code, Path(crowded)))
                     for _ in range(arguments.runs + 1)][1:]
            few, many = (min(times) for times in zip(*pairs))
            print(f"{command:<20}{few:>13.0f}{many:>15.0f}{many / few:>7.2f}")


if __name__ == "__main__":
    main()
