"""``muse report`` and ``muse show``: finished runs and runs in progress as a page, as a table and as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from muse_core.cli.errors import ended_by_signals, guarded, warn
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.printed import console, print_table
from muse_core.cli.threads import prepare_torch

PORT = 8765


@click.command()
@click.argument("runs", nargs=-1, required=True, type=GivenPath(path_type=Path))
@click.option("-o", "--output", type=GivenPath(path_type=Path, file_okay=False),
              help="Folder for report.html and pictures [default: the run directory; of several runs: report].")
@click.option("--model", is_flag=True,
              help="Open the newest checkpoint of each run: count parameters and draw a sample anew.")
@click.option("--cost", is_flag=True, help="As --model, and measure the time of each component in a forward pass.")
@click.option("--device", type=GivenDevice(),
              help="With --model or --cost: auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
@click.option("--serve", is_flag=True, help="Write nothing; serve the report on this machine and follow the runs.")
@click.option("--port", type=click.IntRange(0, 65535),
              help=f"With --serve: the port on 127.0.0.1; 0 takes a free one [default: {PORT}].")
def report(
    runs: tuple[Path, ...], output: Path | None, model: bool, cost: bool, device: str | None, serve: bool,
    port: int | None,
) -> None:
    """Draw RUNS, run directories, finished or in progress: one page that needs no network, and a PNG of each picture.

    Several runs are drawn over each other. The page of --serve loads itself anew while the runs go on; Ctrl-C ends it.

    \b
    Exit codes: 0 done; 2 arguments, a port in use, or vl-convert-python is
    missing; 3 no such run or a damaged file.
    """
    with guarded(), ended_by_signals():
        prepare_torch()
        from muse_core.errors import RecipeError
        from muse_core.report.reading import read_runs
        from muse_core.report.writing import write_report
        from muse_core.storage.run_directory import refuse_run

        if serve and (output or model or cost):
            raise RecipeError("--serve writes nothing: leave --output, --model and --cost out")
        if port is not None and not serve:
            raise RecipeError("--port is that of --serve: add --serve, or leave --port out")
        if device is not None and not (model or cost):
            raise RecipeError("--device: a report opens a model with --model or --cost alone - add one of them")
        folder = output or (runs[0] if len(runs) == 1 else Path("report"))
        if not serve and [run.resolve() for run in runs] != [folder.resolve()]:  # a run's own report lies in it
            refuse_run(folder)
        read = read_runs(runs)
        if serve:
            _serve(runs, PORT if port is None else port)
            return
        if model or cost:
            for run in runs:
                _make_contents(run, cost, device)
            read = read_runs(runs)
        click.echo(write_report(read, folder))


def _make_contents(run: Path, cost: bool, device: str | None) -> None:
    from muse_core.report.writing import make_contents
    from muse_core.training.trained import open_trained

    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is not the answer
        setup, step = open_trained(run, device=device, untrained=False, say=warn)
        make_contents(run, setup, step, cost=cost)


def _serve(runs: tuple[Path, ...], port: int) -> None:
    from muse_core.report.drawing import script
    from muse_core.report.serving import LOOPBACK, Reports, server_of

    script()  # a missing library is told before anything is served
    with server_of(Reports(runs), port) as server:
        click.echo(f"http://{LOOPBACK}:{server.server_address[1]}/  (Ctrl-C ends)")
        sys.stdout.flush()
        server.serve_forever(poll_interval=0.2)


@click.command()
@click.argument("runs", nargs=-1, type=GivenPath(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object, of several runs a list, for scripts.")
@click.option("--format", "form", type=click.Choice(["csv", "markdown", "latex"]),
              help="A table with a row for each run: csv with all digits, markdown and latex as shown.")
def show(runs: tuple[Path, ...], as_json: bool, form: str | None) -> None:
    """Say how RUNS, run directories, stand: of one its state, newest numbers, monitors, events, files; of several a
    line each. A folder stands for the runs in it, nothing for those in the folder runs.

    \b
    The JSON object of a run: path, name, state, steps, planned_steps,
    summary (null before the end), recipe, digests, train, eval, probe (newest
    rows), final, events, sample, files.

    Numbers that are not finite are "nan", "inf" or "-inf".
    """
    with guarded():
        from muse_core.errors import RecipeError
        from muse_core.report.listing import runs_at
        from muse_core.report.reading import read_run
        from muse_core.storage.canonical_json import spelled

        if as_json and form:
            raise RecipeError(f"--json and --format {form} are two forms - leave one of them out")
        paths = runs_at(runs or (Path("runs"),))
        one = len(paths) == 1 and paths[0] in runs
        if form:
            _write_several(paths, form)
        elif as_json:
            found = spelled(_table(read_run(paths[0])) if one else [_table(read) for read in _read_several(paths)])
            click.echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        elif one:
            _print(read_run(paths[0]))
        else:
            _print_several(paths)


def _table(read: Any) -> dict[str, Any]:
    def newest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {key: value for key, value in rows[-1].items() if key != "x"} if rows else None

    steps, planned = read.progress
    return {
        "path": str(read.path), "name": read.name, "state": read.state, "steps": steps, "planned_steps": planned,
        "summary": read.summary or None,
        "recipe": read.recipe, "digests": read.lock.get("digests", {}), "train": newest(read.train),
        "eval": newest(read.evaluations), "probe": newest(read.probes), "final": read.finals,
        "events": [{key: value for key, value in row.items() if key != "x"} for row in read.events],
        "sample": read.made.get("sample"), "files": sorted(path.name for path in read.path.iterdir()),
    }


def _read_several(paths: list[Path]) -> list[Any]:
    """Those that can be read; a line says of the others why not."""
    from muse_core.report.listing import readable

    found, unread = readable(paths)
    for _, sentence in unread:
        warn(sentence)
    return found


def _write_several(paths: list[Path], form: str) -> None:
    from muse_core.report import forms
    from muse_core.report.listing import row
    from muse_core.report.tables import runs_table

    found = _read_several(paths)
    if form == "csv":
        click.echo(forms.csv_of([row(read) for read in found]), nl=False)
    else:
        click.echo({"markdown": forms.markdown, "latex": forms.latex}[form](runs_table(found)), nl=False)


def _print_several(paths: list[Path]) -> None:
    """A line for each run; one that cannot be read says so."""
    from muse_core.report.tables import runs_table

    told = runs_table(_read_several(paths))
    print_table(console(), told.columns, told.rows)


def _print(read: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from muse_core.report.tables import events_table, key_numbers, monitors_table

    console = Console(highlight=False, markup=False)
    console.print(f"{read.name} in {read.path}", style="bold", soft_wrap=True)
    numbers = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in key_numbers(read):
        numbers.add_row(name, value)
    console.print(numbers)
    for title, table in (("Monitors", monitors_table(read)), ("Events", events_table(read))):
        shown = Table(*table.columns, title=title, title_justify="left", box=None, header_style="dim")
        for row in table.rows[-20:]:
            shown.add_row(*row)
        console.print()
        console.print(shown if table.rows else f"{title}: {table.nothing}")
