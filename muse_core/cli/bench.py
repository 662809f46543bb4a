"""``muse bench``: measurements of this machine."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from muse_core.cli.errors import guarded
from muse_core.cli.given_path import GivenPath
from muse_core.cli.threads import import_numpy
from muse_core.errors import RecipeError


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--json", "json_file", type=GivenPath(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", type=GivenPath(dir_okay=False, path_type=Path), help="Draw the roofline picture here.")
@click.option(
    "--only",
    type=click.Choice(["resolvent", "fast_weights", "deep_memory", "trace_attention", "cpu"]),
    help="One part of the table.",
)
def kernels(json_file: Path | None, plot: Path | None, only: str | None) -> None:
    """Times of the kernels beside the copy bandwidth of the same run, and beside peers where they are installed.

    A GPU is needed for all but --only cpu. Runs python -m muse_kernels.benchmarks: the core imports no kernels.
    Exit codes: 0 done; 2 arguments, no GPU, or muse-kernels is missing.
    """
    given = {"--json": json_file, "--plot": plot, "--only": only}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    with guarded():
        import_numpy()
        if find_spec("muse_kernels") is None:
            raise RecipeError("bench kernels: muse-kernels is not installed; pip install muse-kernels")
        raise SystemExit(subprocess.call([sys.executable, "-m", "muse_kernels.benchmarks", *options]))
