"""``muse diagnose``: what the layers of a trained run do on a text, beside what they did at its start."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.given_text import given_text
from muse_core.cli.printed import console, print_table
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch

NUMBERS = 20
"""Characters of a smallest, a mean and a largest number in one line where columns are few."""


@click.command()
@run_argument()
@click.option("--text", help="Text to read [default: the beginning of the validation text].")
@click.option("--text-file", type=GivenPath(path_type=Path), metavar="FILE",
              help="UTF-8 file with the text to read; - is the standard input.")
@click.option("--tokens", default=1024, show_default=True, type=click.IntRange(min=2), help="Tokens to read at most.")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
@click.option("--device", type=GivenDevice(),
              help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def diagnose(
    run: Path, text: str | None, text_file: Path | None, tokens: int, step: int | None, device: str | None,
    as_json: bool,
) -> None:
    """Show signals and metrics of every layer of RUN, a run directory, at its start and as trained.

    Signals (Γ, θ, phases, Lyapunov exponents, what memories answer) are given as smallest, mean and largest value over
    tokens and heads. A model that has checks of its own adds them.
    """
    with guarded():
        prepare_torch()
        from muse_core.evaluation.diagnostics import diagnose as read
        from muse_core.evaluation.diagnostics import own_checks
        from muse_core.storage.canonical_json import spelled
        from muse_core.training.trained import open_start, open_trained

        if text is not None or text_file is not None:
            text = given_text(text, text_file, "--text", "the text to read")
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is not the answer
            trained, _ = open_trained(run, device=device, step=step, untrained=False, say=warn)
            start, now = (read(setup, text, tokens=tokens) for setup in (open_start(run, device=device), trained))
            tables = own_checks(trained, run)
        before, after = start.ranges(), now.ranges()
        if as_json:
            rows = [
                {"quantity": quantity, "layer": layer, "start": list(before[quantity, layer]), "trained": list(values)}
                for (quantity, layer), values in after.items()
            ]
            losses = {"start": start.loss, "trained": now.loss}
            table = {"loss": losses, "rows": rows, "checks": tables}
            print(json.dumps(spelled(table), indent=2, allow_nan=False))
            return
        shown = console()
        for layer in dict.fromkeys(layer for _, layer in after):
            rows = [
                (quantity, _told(before[quantity, layer]), _told(values))
                for (quantity, owner), values in after.items() if owner == layer
            ]
            print_table(shown, (layer, "at the start", "trained"), rows, phrase=NUMBERS)
            shown.print()
        for title, values in tables.items():
            told = [(name, value if isinstance(value, str) else f"{value:.4g}") for name, value in values.items()]
            print_table(shown, (title, ""), told)
            shown.print()
        shown.print(f"loss {start.loss:.4f} nats/token at the start, {now.loss:.4f} trained")


def _told(values: tuple[float, ...]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else " … ".join(f"{value:.4g}" for value in values)
