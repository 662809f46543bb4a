"""``muse-run``: train, guard, evaluate and report what a recipe says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from muse_core.cli import Answering
from muse_core.cli.errors import ended_by_signals, guarded
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.process import outlive_output
from muse_core.cli.threads import prepare_torch
from muse_core.errors import RecipeError
from muse_core.parallel.meeting import agree_on_start, meeting
from muse_core.storage.run_directory import require_directory


@click.command(cls=Answering, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe", required=False, type=GivenPath(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Override one key, as train.steps=100 or model.block[0].heads=32. May be repeated.")
@click.option("--run-dir", type=GivenPath(path_type=Path), help="Directory of the run [default: runs/<name>-<time>].")
@click.option("--device", type=GivenDevice(), help="auto, cpu, cuda or cuda:<index>; the same as --set train.device=…")
@click.option("--dry-run", is_flag=True, help="Show what would be built; no run is begun. Encoded text is cached.")
@click.option("--resume", type=GivenPath(path_type=Path), metavar="RUN_DIR",
              help="Go on with an interrupted run from its newest good checkpoint.")
@click.option("--locked", type=GivenPath(path_type=Path), metavar="LOCK",
              help="Repeat the run of a muse.lock.toml, or say what differs here.")
@click.option("--allow-drift", is_flag=True,
              help="With --resume or --locked: go on although plugins, versions or data differ.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N",
              help="With --resume: train to N steps in all; the schedule is from here on that of a run of N steps.")
@click.option("--extend", type=click.IntRange(min=1), metavar="N",
              help="With --resume: train N steps beyond the planned ones, at the rate of the last planned one.")
@click.option("--restart", is_flag=True,
              help="With --resume: begin again at step 0 where every checkpoint of a run is gone.")
@click.option("--processes", type=click.IntRange(min=1), metavar="N",
              help="Divide the work among N processes of this host, one per GPU, as [parallel] in the recipe says.")
@click.option("--report/--no-report", default=True, envvar="MUSE_REPORT", show_envvar=True,
              help="Draw report.html and pictures at the end [default: report].")
@click.version_option(package_name="muse-core")
def main(
    recipe: Path | None,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    device: str | None,
    dry_run: bool,
    resume: Path | None,
    locked: Path | None,
    allow_drift: bool,
    steps: int | None,
    extend: int | None,
    restart: bool,
    processes: int | None,
    report: bool,
) -> None:
    """Train, guard, evaluate and report the language model that RECIPE, a TOML file, describes.

    \b
    Exit codes: 0 done; 2 recipe, arguments or device; 3 storage or data;
    4 halted by a gate or monitor; 5 plugin; 6 a process of several was lost;
    7 memory ran out, resumable where a checkpoint is;
    128 + signal (130, 143, 129, 138) interrupted, resumable.
    """
    outlive_output()
    with guarded(), ended_by_signals():
        prepare_torch()
        _refuse_contradictions(
            recipe, resume, locked, new_only=bool(overrides or run_dir), resume_only=bool(steps or extend or restart),
            both_lengths=bool(steps and extend),
        )
        if device is not None:
            overrides = (*overrides, f'train.device="{device}"')
        if processes is not None and _start_processes(
            processes, recipe, resume, locked, overrides, dry_run=dry_run
        ):
            return
        with meeting() as ranks:
            agree_on_start(ranks, sys.argv[1:], [recipe, locked, None if resume is None else resume / "recipe.toml"])
            if resume is not None:
                require_directory(resume)  # before torch is imported, which takes seconds
                from muse_core.cli.launch import resumed

                resumed(
                    resume, device=device, allow_drift=allow_drift, steps=steps, extend=extend, restart=restart,
                    report=report, ranks=ranks,
                )
                return
            from muse_core.recipe import read_recipe
            from muse_core.recipe.lock import read_lock

            lock = read_lock(locked) if locked is not None else None
            checked = lock.check(overrides) if lock is not None else read_recipe(recipe, overrides)
            # Imports torch, which takes seconds: a wrong recipe is told before.
            from muse_core.cli.launch import fresh, show

            if dry_run:
                if ranks.rank == 0:
                    show(checked)
            else:
                fresh(checked, lock, run_dir, allow_drift=allow_drift, report=report, ranks=ranks)


def _refuse_contradictions(
    recipe: Path | None, resume: Path | None, locked: Path | None, *, new_only: bool, resume_only: bool,
    both_lengths: bool,
) -> None:
    given = [name for name, value in (("RECIPE", recipe), ("--resume", resume), ("--locked", locked)) if value]
    if len(given) != 1:
        wrong = " and ".join(given) if given else "nothing"
        raise RecipeError(f"give one of RECIPE, --resume RUN_DIR and --locked LOCK, not {wrong}")
    if resume is not None and new_only:
        raise RecipeError("--resume continues the run as its recipe says: leave --set and --run-dir out")
    if resume is None and resume_only:
        raise RecipeError("--steps, --extend and --restart go with --resume: a new run takes --set train.steps=N")
    if both_lengths:
        raise RecipeError("give --steps N, all steps of the run, or --extend N, further ones, not both")


def _start_processes(
    processes: int, recipe: Path | None, resume: Path | None, locked: Path | None, overrides: tuple[str, ...], *,
    dry_run: bool,
) -> bool:
    """Start the processes of ``--processes`` and wait for them, or refuse what cannot be divided among so many. False
    where this one goes on: it is the only one, or shows what would be built."""
    from muse_core.parallel.sizes import check_sizes
    from muse_core.parallel.starting import refuse_launcher, start
    from muse_core.recipe import read_recipe
    from muse_core.recipe.lock import read_lock

    refuse_launcher(processes)
    if processes == 1:
        return False
    if locked is not None:
        checked = read_lock(locked).check(overrides)
    else:
        if resume is not None:
            require_directory(resume)
        path = recipe if resume is None else resume / "recipe.toml"
        checked = read_recipe(path, overrides)
    check_sizes(checked.recipe, processes)
    if dry_run:
        return False
    start(processes, without_processes(sys.argv[1:]))
    return True


def without_processes(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without ``--processes N``, which its processes must not see."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--processes" and not argument.startswith("--processes="):
            kept.append(argument)
        skip = argument == "--processes"
    return kept


if __name__ == "__main__":
    main()
