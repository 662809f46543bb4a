"""``muse compress``: a run whose model is a smaller form of another run's."""

from __future__ import annotations

from pathlib import Path

import click

from muse_core.cli.errors import ended_by_signals, guarded
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.process import outlive_output, refuse_several_processes
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch


@click.command()
@run_argument()
@click.option("--ratio", type=float,
              help="How many times smaller the weights become [default: 2, or what int8 and int4 give].")
@click.option("--method", default="whitened", show_default=True, metavar="NAME",
              help="whitened, koopman, svd, magnitude, int8 or int4; see muse plugins show koopman-compress.")
@click.option("--quantize", metavar="NAME", help="Store the factors as int8 or int4 at last; counts for the ratio.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(min=0),
              help="Steps of distillation after each round; 0 trains nothing. int8 and int4 have none.")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1, 16),
              help="Reach the ratio in so many rounds, each fitted and distilled.")
@click.option("-o", "--output", type=GivenPath(path_type=Path),
              help="Directory of the new run [default: runs/<name>-<method>-<time>].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Override one key of the new run's recipe.")
@click.option("--device", type=GivenDevice(),
              help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
@click.option("--report/--no-report", default=True, envvar="MUSE_REPORT", show_envvar=True,
              help="Draw report.html and pictures at the end [default: report].")
def compress(
    run: Path, ratio: float | None, method: str, quantize: str | None, steps: int, rounds: int, output: Path | None,
    overrides: tuple[str, ...], device: str | None, report: bool,
) -> None:
    """Make a run with a smaller form of the model of RUN, a finished run, on its text. RUN is only read.

    What became of each map stands in evaluation-0.json of the new run, which muse generate, eval, diagnose and report
    open as any other. An interrupted one goes on with muse-run --resume.
    """
    outlive_output()
    with guarded(), ended_by_signals():
        prepare_torch()
        refuse_several_processes()
        from muse_core.training.compression import Compression, compress_run

        asked = Compression(ratio=ratio, method=method, then=quantize or "none", steps=steps, rounds=rounds)
        more = overrides if device is None else (*overrides, f'train.device="{device}"')
        folder, sizes = compress_run(run, asked, output, more, report=report)
        click.echo(f"{folder}: {sizes}")
