"""``muse export``: a run's model for another tool."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.threads import let_waiting_threads_sleep


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(["hf"]), default="hf", show_default=True,
              help="hf: Hugging Face transformers.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]),
              help="What the opened model computes in [default: as the run]. Weights are stored in fp32 either way.")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
def export(run: Path, directory: Path, form: str, dtype: str | None, step: int | None) -> None:
    """Write the model of RUN into the new DIRECTORY. No text of the run is read.

    transformers opens it by AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True), where muse-core
    and the plugins of the recipe are installed.
    """
    let_waiting_threads_sleep()
    with guarded():
        from muse_core.interchange.hugging_face import export as write

        with contextlib.redirect_stdout(sys.stderr):
            files = write(run, directory, dtype=dtype, step=step, say=warn)
        click.echo(f"{directory}: {', '.join(files)}")
