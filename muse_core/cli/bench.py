"""``muse bench``: measurements of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from muse_core.cli.errors import guarded
from muse_core.errors import MuseError


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the roofline picture here.")
@click.option("--only", type=click.Choice(["resolvent", "fast_weights", "cpu"]), help="One part of the table.")
def kernels(json_file: Path | None, plot: Path | None, only: str | None) -> None:
    """Times of the kernels beside the copy bandwidth of the same run, and beside peers where they are installed.

    A GPU is needed for all but --only cpu. The same as python -m muse_kernels.benchmarks.
    """
    with guarded():
        try:
            from muse_kernels.benchmarks.table import run
        except ModuleNotFoundError as missing:
            raise MuseError(f"bench kernels: {missing.name} is not installed; pip install muse-kernels") from missing
        raise SystemExit(run(json_file=json_file, plot=plot, only=only))
