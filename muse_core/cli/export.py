"""``muse export``: a run's model for another tool."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.given_path import GivenPath
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch


@click.command()
@run_argument()
@click.argument("directory", type=GivenPath(path_type=Path))
@click.option("--to", "form", type=click.Choice(["hf", "torch"]), default="hf", show_default=True,
              help="hf: Hugging Face transformers. torch: a program that needs torch alone.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]),
              help="What the opened model computes in [default: as the run]. Weights are stored in fp32 either way.")
@click.option("--length", type=click.IntRange(min=1),
              help="With --to torch: tokens of a row [default: as in training].")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
def export(run: Path, directory: Path, form: str, dtype: str | None, length: int | None, step: int | None) -> None:
    """Write the model of RUN into the new DIRECTORY. No text of the run is read.

    transformers opens it by AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True), where muse-core
    and the plugins of the recipe are installed. torch.export.load(DIRECTORY/model.pt2).module() needs neither; it gives
    the scores of rows of one length, in fp32.
    """
    with guarded():
        prepare_torch()
        from muse_core.errors import RecipeError
        if form == "torch" and dtype is not None or form == "hf" and length is not None:
            raise RecipeError("--dtype goes with --to hf, and --length with --to torch")
        with contextlib.redirect_stdout(sys.stderr):
            if form == "torch":
                from muse_core.interchange import program

                files = program.export(run, directory, length=length, step=step, say=warn)
            else:
                from muse_core.interchange import hugging_face

                files = hugging_face.export(run, directory, dtype=dtype, step=step, say=warn)
        click.echo(f"{directory}: {', '.join(files)}")
