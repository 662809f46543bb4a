"""``muse cost``: speed, memory and reach of recipes and trained runs, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.printed import columns, console, paragraph, print_table
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch

if TYPE_CHECKING:
    from muse_core.comparison.targets import Target


@click.command()
@run_argument("targets", several=True, recipes=True)
@click.option("--length", "lengths", multiple=True, type=click.IntRange(min=2),
              help="Tokens of a sequence; may be repeated [default: the first recipe's train.sequence_length].")
@click.option("--tokens", type=click.IntRange(min=1),
              help="Tokens of a training step, in rows of --length [default: one row].")
@click.option("--vocabulary", default=257, show_default=True, type=click.IntRange(min=2),
              help="Tokens that a fresh model knows.")
@click.option("--reach", type=click.IntRange(min=2), metavar="N",
              help="Also the gradient of the last of N tokens' loss with respect to the first one's embedding.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of every recipe.")
@click.option("--device", type=GivenDevice(), help="auto, cpu, cuda or cuda:<index>; the same as --set train.device=…")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Steps of which the median "
              "counts, after three that do not.")
@click.option("--json", "output", type=GivenPath(path_type=Path, dir_okay=False), help="Write the numbers here too.")
def cost(
    targets: tuple[Path, ...], lengths: tuple[int, ...], tokens: int | None, vocabulary: int, reach: int | None,
    overrides: tuple[str, ...], device: str | None, repeats: int, output: Path | None,
) -> None:
    """Measure a training step of each of TARGETS: recipes, built with fresh weights, or run directories, opened with
    their newest. Speeds are given against the last target's at the same length.

    The step is forward, backward, clipping and update on random tokens, each row one document. A target or length that
    does not fit into the memory is said to be so, and the others go on. --reach reads held-out text in runs and random
    tokens otherwise.
    """
    with guarded():
        prepare_torch()
        from muse_core.comparison.targets import measure_reach, measure_step, open_target
        from muse_core.storage.canonical_json import spelled
        from muse_core.storage.disk import deliver, storage_errors

        device_set = [] if device is None else [f'train.device="{device}"']
        opened = [open_target(path, [*overrides, *device_set], vocabulary, warn) for path in targets]
        rows: list[dict[str, Any]] = []

        def report(target: Target, found: dict[str, Any]) -> None:
            rows.append({"target": str(target.path), "parameters": target.parameters} | found)
            click.echo(_line(rows[-1]))
            if output is not None:
                with storage_errors("write", output):
                    deliver(output, json.dumps(spelled(rows), indent=2, allow_nan=False) + "\n")

        click.echo(_computed_on(opened))
        if reach is not None:
            for target in opened:
                report(target, measure_reach(target, reach))
        for length in lengths or (opened[0].recipe.train.sequence_length,):
            for target in opened:
                report(target, measure_step(target, length, tokens, repeats))
        click.echo()
        _print(rows, str(targets[-1]))


def _computed_on(targets: Sequence[Target]) -> str:
    """Device and type of numbers: one line, or one for each where targets differ, with the targets that it is of."""
    found: dict[str, list[str]] = {}
    for target in targets:
        found.setdefault(f"{target.device_name}, {target.precision.dtype}", []).append(str(target.path))
    if len(found) == 1:
        return f"{next(iter(found))}; {targets[0].versions}"
    return "\n".join([targets[0].versions, *(f"{told}: {', '.join(paths)}" for told, paths in found.items())])


def _line(row: dict[str, Any]) -> str:
    """What was measured just now, in short; the table at the end and --json have all of it."""
    if "reach" in row:
        return f"{row['target']}, reach over {row['tokens']:,} tokens: {row['reach']:.3g}"
    told = row["failed"] if "failed" in row else f"{row['tokens_per_second']:,.0f} tokens/s"
    return f"{row['target']}, length {row['length']:,}: {told}"


NAMES = ("target", "parameters", "rows × length", "tokens/s", "against the last", "peak GB", "held by memory layers GB",
         "by fast weights GB", "state MB")


def _print(rows: list[dict[str, Any]], reference: str) -> None:
    """The measured steps and reaches: within the columns of a terminal, and as Markdown into a pipe."""
    from muse_core.report.forms import markdown
    from muse_core.report.tables import Table

    steps = [row for row in rows if "length" in row]
    base = {row["length"]: row["tokens_per_second"] for row in steps if row["target"] == reference and "rows" in row}
    cells = [_cells(row, base) for row in steps]
    if columns() is None:
        click.echo(markdown(Table(columns=NAMES, rows=cells)), nl=False)
    else:
        print_table(console(), NAMES, cells, numbers=NAMES[1:])
    for row in rows:
        if "reach" in row:
            click.echo("\n" + paragraph(
                f"{row['target']}, {row['weights']}: gradient reach over {row['tokens']} tokens "
                f"{row['reach']:.3g} (median of {row['documents']}; {row['low']:.3g} to {row['high']:.3g})"))


def _cells(row: dict[str, Any], base: dict[int, float]) -> tuple[str, ...]:
    """A row of the table; ``base``: tokens per second of the target that others are given against, by length."""
    if "rows" not in row:
        return (row["target"], f"{row['parameters']:,}", str(row["length"]), row["failed"], "", "", "", "", "")
    ratio = _short(row["tokens_per_second"] / base[row["length"]]) if row["length"] in base else ""
    peak, held, kept = (
        "" if row[key] is None else _short(row[key] / 1e9)
        for key in ("peak_bytes", "memory_bytes", "fast_weights_bytes")
    )
    return (row["target"], f"{row['parameters']:,}", f"{row['rows']} × {row['length']}",
            f"{row['tokens_per_second']:,.0f}", ratio, peak, held, kept, _short(row["state_bytes"] / 1e6))


def _short(number: float) -> str:
    """With two decimals, or two digits where there would be none but zeros."""
    return f"{number:.2f}" if number >= 0.095 or not number else f"{number:.2g}"
