"""``muse compare``: the runs of a plan, as many as the time allows, and what they say."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muse_core.cli.errors import ended_by_signals, guarded
from muse_core.cli.given_path import GivenPath
from muse_core.cli.process import outlive_output, refuse_several_processes
from muse_core.cli.threads import import_numpy

if TYPE_CHECKING:
    from muse_core.comparison.cells import Cell
    from muse_core.comparison.plan import Read
    from muse_core.comparison.runs import Comparison
    from muse_core.training.stop import Stop

LEFT = 75
"""Exit code when runs are left: call again (EX_TEMPFAIL)."""
FAILED_RUNS = 6
"""Exit code when nothing is left that another call would do, and the comparison lacks runs that failed."""

GPU = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+")
"""As CUDA_VISIBLE_DEVICES takes it."""


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="PLAN | RUN RUN…", type=GivenPath(path_type=Path))
@click.option("-o", "--output", type=GivenPath(path_type=Path, file_okay=False),
              help="Folder of the runs and of the report [default: comparisons/<name of the plan>; of run directories: "
              "comparisons/<A>-against-<B>].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Override one key of every variant, as muse-run does; take another --output for it.")
@click.option("--arms", metavar="NAME,…",
              help="Only these variants of the plan; patterns as 'phase5*' too.")
@click.option("--baseline", metavar="NAME", help="Compare with this variant in place of the plan's.")
@click.option("--seeds", metavar="1,2,…", help="Report these seeds in place of the plan's.")
@click.option("--values", metavar="V,V,…",
              help="Sweep these values in place of the plan's, as to widen it; what is done is not repeated.")
@click.option("--sweep-only", is_flag=True,
              help="Run the sweep and not what is reported with the values that it chooses.")
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 256),
              help="Runs at a time; several small ones share a GPU well.")
@click.option("--gpus", metavar="0,1,…", help="Deal the slots over these GPUs [default: as torch chooses].")
@click.option("--cluster", type=click.Choice(["slurm", "local"]),
              help="Each run as a job of a scheduler, through submitit; local tries it with processes of this host.")
@click.option("--job", "job", multiple=True, metavar="KEY=VALUE",
              help="A parameter of these jobs, as timeout_min=600, gpus_per_node=1 or slurm_partition=gpu.")
@click.option("--max-seconds", type=click.FloatRange(min=0.0, min_open=True),
              help="Then save what runs, report, and leave the rest to the next call.")
@click.option("--retry", is_flag=True, help="Repeat runs that failed.")
@click.option("--report", "only_report", is_flag=True, help="Run nothing; report what is there.")
@click.option("--dry-run", is_flag=True, help="List the runs and the sizes of the variants, and run nothing.")
def compare(
    targets: tuple[Path, ...], output: Path | None, overrides: tuple[str, ...], arms: str | None, baseline: str | None,
    seeds: str | None, values: str | None, sweep_only: bool, slots: int, gpus: str | None, cluster: str | None,
    job: tuple[str, ...], max_seconds: float | None, retry: bool, only_report: bool, dry_run: bool,
) -> None:
    """Train, tune and compare what PLAN, a TOML file, lists, in as many calls as it takes; or compare finished RUNs,
    each with the last one.

    Each run is an ordinary run directory: one that is done is not repeated, one that was interrupted goes on. After
    every run report.md, report.json, and its table as report.csv and report.tex, are written anew. Of run directories
    nothing is trained: the report has the recipe keys that differ, the curves, the ratio paired by documents with its
    interval, and a verdict.

    Exit codes: 0 all is done; 75 runs are left, call again; 6 reported runs failed, or every value of a variant's sweep
    did, and another call does nothing without --retry; others as for muse-run.
    """
    outlive_output()
    with guarded(), ended_by_signals():
        refuse_several_processes()
        if len(targets) > 1 or targets[0].is_dir():
            named = any(one is not None for one in (arms, baseline, seeds, values, gpus))
            given = [overrides, sweep_only, slots != 1, cluster, job, max_seconds, retry, only_report, dry_run]
            _compare_runs(targets, output, named or any(given))
            return
        from muse_core.comparison.part import part_of
        from muse_core.comparison.plan import read_plan
        from muse_core.comparison.runs import Comparison
        from muse_core.storage.run_directory import refuse_run
        from muse_core.training.stop import Stop

        plan = targets[0]
        dealt = _check_options(gpus, cluster, job, max_seconds, retry, only_report)
        stop = Stop(max_seconds)
        read = part_of(read_plan(plan, overrides), arms=arms, baseline=baseline, seeds=seeds, values=values)
        if sweep_only:
            _check_sweep(read, only_report)
        comparison = Comparison(read, output or Path("comparisons") / read.plan.name, sweep_only=sweep_only)
        refuse_run(comparison.folder)
        if not only_report:
            import_numpy()
        if dealt and not (only_report or dry_run):
            from muse_core.comparison.gpus import require_gpus  # imports torch

            require_gpus(dealt)
        if not only_report:
            _say_parameters(read, plan, comparison.folder)
            for sentence in comparison.trained_otherwise:
                click.secho(f"warning: {sentence}", fg="yellow")
        if dry_run:
            _list_runs(comparison)
        elif only_report:
            _report(comparison, stop)
        else:
            _work(comparison, stop, slots, dealt, cluster, job, retry)
            _report(comparison, stop)


def _check_options(
    gpus: str | None, cluster: str | None, job: tuple[str, ...], max_seconds: float | None, retry: bool,
    only_report: bool,
) -> list[str]:
    """The GPUs that ``--gpus`` names. Raises RecipeError for what click lets through."""
    from muse_core.comparison.part import listed
    from muse_core.errors import RecipeError

    if max_seconds is not None and not math.isfinite(max_seconds):
        raise RecipeError(f"--max-seconds {max_seconds}: must be a finite number - leave it out for no limit")
    dealt = listed("--gpus", gpus)
    for gpu in dealt:
        if not GPU.fullmatch(gpu):
            raise RecipeError(f"--gpus {gpus}: {gpu!r} names no GPU - write their numbers, as 0,1, or their UUIDs")
    if job and cluster is None:
        raise RecipeError("--job is a parameter of the jobs of --cluster - name one, or leave it out")
    if dealt and cluster is not None:
        raise RecipeError("--gpus are those of this host; the scheduler gives others: --job gpus_per_node=1")
    if retry and only_report:
        raise RecipeError("--retry repeats runs, and --report runs nothing - leave one of them out")
    return dealt


def _check_sweep(read: Read, only_report: bool) -> None:
    """Raises RecipeError where ``--sweep-only`` would run nothing."""
    from muse_core.errors import RecipeError

    if only_report:
        raise RecipeError("--report runs nothing, and --sweep-only the sweep - leave one of them out")
    if read.plan.tune is None:
        raise RecipeError("--sweep-only: the plan has no [tune], so that there is nothing to sweep - leave it out")
    if not read.plan.tune.runs:
        raise RecipeError("--sweep-only: one value is taken without a sweep - name two or more with --values")


def _list_runs(comparison: Comparison) -> None:
    """What a call would run, and how far each run is."""
    runs, plan = comparison.runs(), comparison.read.plan
    for cell in runs.all:
        click.echo(f"{cell.name}: {_state(cell)}")
    if runs.measuring and not runs.steps:
        click.echo("then the runs of the plan, with as many steps as fit into its seconds")
    elif not runs.reported and not comparison.sweep_only:
        click.echo(f"then {len(plan.variants) * len(plan.seeds)} runs with what the sweep chose")


def _work(
    comparison: Comparison, stop: Stop, slots: int, gpus: Sequence[str], cluster: str | None, job: tuple[str, ...],
    retry: bool,
) -> None:
    """Runs what is left, until nothing is or ``stop`` asks to leave; the report is written anew after every run."""
    from muse_core.comparison.cluster import Cluster
    from muse_core.comparison.report import compose, write
    from muse_core.comparison.slots import Slots, begin_here
    from muse_core.storage.directory_lock import RunLock
    from muse_core.storage.disk import Disk

    measuring, folder = comparison.runs().measuring, comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder.resolve(), Disk(), "--output")

    def work(count: int, among: Callable[[], Sequence[Cell]]) -> None:
        Slots(
            count=count,
            gpus=gpus,
            say=lambda text: click.echo(f"{time.strftime('%H:%M:%S')} {text}"),
            stop=stop,
            launch=begin_here if jobs is None else jobs,
            progress=lambda: _progress(comparison, settled, began),
        ).work(
            lambda: [cell for cell in among() if not cell.settled()],
            lambda: write(compose(comparison.read.plan, comparison.runs()), folder),
        )

    try:
        jobs = None if cluster is None else Cluster(cluster, folder / "jobs", job)
        if retry:
            comparison.forget_failures()
        began, settled = time.monotonic(), comparison.counted()[0]
        with stop:  # so that runs are asked to save, and none is left behind
            if any(not cell.settled() for cell in measuring):
                work(1, lambda: measuring)  # alone, so that the speed is the variant's
            if not stop.requested:
                work(slots, lambda: comparison.runs().all)
    finally:
        lock.release()


def _progress(comparison: Comparison, settled: int, began: float) -> str:
    """How many runs are done, and the time that the others take if they end as fast as those of this call, before which
    ``settled`` were done."""
    done, every = comparison.counted()
    if done >= every:
        return f" ({done} of {every} runs)"
    minutes = (time.monotonic() - began) / max(done - settled, 1) * (every - done) / 60
    return f" ({done} of {every} runs, about {minutes:,.0f} min left)"


def _report(comparison: Comparison, stop: Stop) -> None:
    """Writes and prints the report, and leaves with the exit code that it asks for."""
    from muse_core.comparison.report import compose, text_of, write
    from muse_core.errors import StorageError
    from muse_core.training.stop import Interrupted

    folder = comparison.folder
    if not folder.is_dir():
        raise StorageError(f"{folder}: there is no such folder - run the plan first, or name it with --output")
    report = compose(comparison.read.plan, comparison.runs())
    write(report, folder)
    click.echo()
    click.echo(text_of(report), nl=False)
    if stop.signal is not None:
        raise Interrupted(stop.signal, "interrupted; what ran is saved. Call again to go on")
    if report["left"] or report["waiting_for_the_sweep"]:
        raise SystemExit(LEFT)
    if report["reported_failed"] or report["sweep_failed"]:
        raise SystemExit(FAILED_RUNS)


def _say_parameters(read: Read, plan: Path, folder: Path) -> None:
    """Says what each variant has. Raises RecipeError where the plan refuses variants of unequal size."""
    from muse_core.comparison.parameters import count_parameters, departures
    from muse_core.errors import RecipeError

    counts = count_parameters(read, folder)
    for name, count in counts.items():
        click.echo(f"{name}: {count:,} {read.plan.parameter_kind}")
    far = departures(read.plan, counts)
    if far and read.plan.parameters == "refuse":
        raise RecipeError([f"{plan}: {sentence}" for sentence in far])
    for sentence in far:
        click.secho(f"warning: {sentence}", fg="yellow")


def _compare_runs(runs: tuple[Path, ...], output: Path | None, plan_options: bool) -> None:
    from muse_core.comparison.ratio import told_interval
    from muse_core.errors import RecipeError
    from muse_core.report.compared import compare_runs, folder_for, verdict_table, write_compared
    from muse_core.report.reading import read_runs
    from muse_core.report.tables import recipe_differences
    from muse_core.report.writing import write_report
    from muse_core.storage.run_directory import refuse_run

    files = [run for run in runs if run.is_file()]
    if files:
        raise RecipeError(f"{files[0]}: is a file - give one plan, or two or more run directories")
    if len(runs) < 2:
        raise RecipeError(f"{runs[0]}: is a directory - give two or more run directories, or one plan")
    if plan_options:
        raise RecipeError("finished runs are compared as they are: leave all options but --output out")
    if output is not None:
        refuse_run(output)
    read = read_runs(runs)
    report = compare_runs(read)
    verdicts, differing = verdict_table(report), recipe_differences(read)
    folder = output or folder_for(read, Path("comparisons"))
    written = write_report(read, folder, before=[("Comparison", verdicts)])
    write_compared(report, folder)
    for row in differing.rows:
        click.echo(f"{row[0]}: {' | '.join(row[1:])}")
    click.echo()
    for one in report["against_baseline"]:
        within = f" (95 % {told_interval(one)})" if told_interval(one) else ""
        click.echo(
            f"{one['run']}: {one['value']:.4f} × the {report['unit']} of {report['baseline']}{within}: {one['verdict']}"
        )
        for remark in one["remarks"]:
            click.echo(f"  {remark}")
    click.echo(f"{report['test']}\n{written}")


def _state(cell: Cell) -> str:
    if cell.summary() is not None:
        return "done"
    return f"failed: {cell.failure()}" if cell.failure() else "to go on with" if cell.started() else "to begin"
