"""``muse gates``: the exit gates of a recipe, run for real."""

from __future__ import annotations

import time
from pathlib import Path

import click

from muse_core.cli.errors import guarded
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.printed import paragraph
from muse_core.cli.threads import prepare_torch

INDENT = 15 * " "
COLOURS = {"PASS": "green", "FAIL": "red", "NOT APPLICABLE": "dim"}


@click.command()
@click.argument("recipe", type=GivenPath(path_type=Path))
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(min=2),
              help="Steps of the training run that the gates look at; every one is recorded.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Override one key, as train.batch_size=8. May be repeated.")
@click.option("--device", type=GivenDevice(), help="auto, cpu, cuda or cuda:<index>; the same as --set train.device=…")
@click.option("--dir", "folder", type=GivenPath(path_type=Path),
              help="New folder for the runs and the report [default: runs/gates-<name>-<time>].")
def gates(recipe: Path, steps: int, overrides: tuple[str, ...], device: str | None, folder: Path | None) -> None:
    """Run every exit gate on RECIPE and print its figure with PASS, FAIL or NOT APPLICABLE.

    \b
    fast-weight chunk  kernels.chunk is about the fastest of 8 to 64, and all
                       have equal outputs
    finite steps       the training run has no value that is not finite, and
                       nothing intervened
    ppl_delta          in metrics.jsonl is the difference of the perplexities
    needle overhead    needle probes take less than 1 % of the time
    memory capacity    the kernel recalls within 5 % of 1/sqrt(1 + n/d)
    memory recall      the trained model recalls more needles than one that
                       ignores the key
    norm_persistent    has an effect, and the recipe has the better setting
    forced spike       three infinite losses are rolled back to a state equal
                       bit for bit
    shard boundaries   no gradient crosses them, and one reaches persistent memory

    Gates that concern something the recipe does not have do not apply and say so. The report is gates.json in the
    folder. Exit codes: 0 nothing failed; 4 a gate failed; others as muse-run.
    """
    with guarded():
        prepare_torch()
        from muse_core.errors import StorageError
        from muse_core.recipe import read_recipe

        if device is not None:
            overrides = (*overrides, f'train.device="{device}"')
        checked = read_recipe(recipe, overrides)
        target = folder or Path("runs") / f"gates-{checked.recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StorageError(f"--dir: {target} is there already and not empty - name a new folder")
        # Imports torch, which takes seconds: a wrong recipe is told before.
        from rich.text import Text

        from muse_core.exit_gates.bench import Bench
        from muse_core.exit_gates.findings import Finding
        from muse_core.exit_gates.gates import GATES, require, run_gates
        from muse_core.metrics.console import Display
        from muse_core.training.stop import Interrupted

        display = Display()

        def hear(number: int, name: str, finding: Finding | None, seconds: float) -> None:
            if finding is None:
                display.say(f"{number}/{len(GATES)} {name} …", "dim")
                return
            line = Text(f"{finding.outcome:<14} ", style=COLOURS[finding.outcome])
            line.append(f"{name}  ", style="bold").append(f"({seconds:.1f} s)")
            for told in filter(None, (finding.figure, finding.reason)):
                line.append("\n" + paragraph(told, first=INDENT, rest=INDENT))
            display.console.print(line, soft_wrap=True)

        target.mkdir(parents=True, exist_ok=True)
        try:
            report = run_gates(Bench(checked, target, display, steps=steps), hear)
        except Interrupted as error:
            raise Interrupted(
                error.exit_code - 128, f"interrupted; gates do not go on where they stopped: {target} may be removed"
            ) from None
        finally:
            display.finish()
        display.say(f"report: {target / 'gates.json'}")
        require(report)
