"""What ``muse-run`` does once its arguments are understood: prepare, show, start or go on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from muse_core.building import construct
from muse_core.cli.run_tables import kernel_rows, kernels_in_short, report_summary
from muse_core.data.kept import TOKENIZER, Kept, lock_in, newest_folder, read_kept, stage_number
from muse_core.data.sources import cache_folder
from muse_core.errors import Halted, RecipeError, StorageError, typed
from muse_core.metrics.console import Display, shown
from muse_core.metrics.sinks import require_sinks
from muse_core.model.flops import parameter_count
from muse_core.model.precision import choose_device
from muse_core.parallel.one import ONE, Ranks
from muse_core.parallel.sizes import check_sizes
from muse_core.recipe import Checked, read_recipe, to_toml
from muse_core.recipe.lock import GO_ON, Lock, differences, plugins_named
from muse_core.recipe.schema import Train
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory
from muse_core.training import preview
from muse_core.training.compilation import require_compiler
from muse_core.training.locking import input_digests, lock_of, own_digests
from muse_core.training.longer import LENGTH, Longer
from muse_core.training.ranks import agree_on_lock, divided, held_by_first, join, records_of, shown_by
from muse_core.training.recordable import require_recordable
from muse_core.training.run import Run
from muse_core.training.schedules import Rates
from muse_core.training.setup import Setup, memory_errors, set_up
from muse_core.training.stop import Interrupted
from muse_core.training.trained import weights_of_init

LONGEST_DRAWING = 60.0
"""Seconds that an interrupted run waits for its report."""


def fresh(
    checked: Checked,
    lock: Lock | None,
    run_dir: Path | None,
    *,
    allow_drift: bool,
    display: Display | None = None,
    report: bool = False,
    ranks: Ranks = ONE,
) -> Path:
    """Start a run in a new directory and return it; ``lock`` is what it must repeat, if anything."""
    display = display or shown_by(ranks)
    check_sizes(checked.recipe, ranks.size)
    resolved = to_toml(checked.resolved)
    name = checked.recipe.name
    with held_by_first(
        ranks,
        lambda: RunDirectory.claim(run_dir, resolved) if run_dir else RunDirectory.claim_named(name, resolved),
    ) as directory:
        try:
            setup, inputs = _prepare(checked, display, ranks)
            now = lock_of(checked, setup, digests=own_digests(setup) | inputs)
            agree_on_lock(ranks, now)
            drift = _drift(lock, now, display, allow_drift) if lock is not None else []
            directory.begin(
                source=checked.source.text or resolved, recipe=resolved, lock=to_toml(now.table),
                tokenizer=setup.corpus.tokenizer.to_json(),
            )
            _start(setup, directory, display, drift, report=report)
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one to report
                directory.withdraw()
            raise
        return directory.path


def resumed(
    run_dir: Path,
    *,
    device: str | None,
    allow_drift: bool,
    steps: int | None = None,
    extend: int | None = None,
    restart: bool = False,
    report: bool = False,
    ranks: Ranks = ONE,
    display: Display | None = None,
) -> None:
    """Go on with a run in its directory, to ``steps`` steps in all or ``extend`` steps further where they are given.
    ``restart`` begins again where its checkpoints are gone."""
    display = display or shown_by(ranks)
    with held_by_first(ranks, lambda: RunDirectory.open(run_dir)) as directory:
        overrides = [] if device is None else [f'train.device="{device}"']
        lock = lock_in(directory.path)
        with plugins_named(lock):
            checked = read_recipe(directory.recipe, overrides, made_with=lock.made_with)
        longer = None
        if steps is not None or extend is not None:
            longer = Longer.of(directory, checked.recipe, steps=steps, extend=extend)
            if longer is None:
                display.say(
                    f"on the way to {checked.recipe.train.steps} steps, as --extend {extend} asked before; "
                    "for a longer run name all of its steps with --steps"
                )
            else:
                checked = read_recipe(directory.recipe, [*longer.overrides, *overrides], checked.registry)
        check_sizes(checked.recipe, ranks.size)
        kept = read_kept(directory.path) if (directory.path / TOKENIZER).exists() else None
        setup = _set_up(checked, display, kept, ranks)
        inputs = _inputs_of_resumed(directory, lock, checked)
        now = lock_of(checked, setup, digests=own_digests(setup) | inputs)
        agree_on_lock(ranks, now)
        drift = _drift(lock, now, display, allow_drift, expected=LENGTH if longer else ())
        if kept is None and setup.corpus.tokenizer.digest == lock.table.get("digests", {}).get("tokenizer"):
            directory.write(TOKENIZER, setup.corpus.tokenizer.to_json())  # a run of a version that kept none
        if longer is not None:
            Longer.check(directory, setup)
        _start(setup, directory, display, drift, longer=longer, restart=restart, report=report)


def show(checked: Checked) -> None:
    """``--dry-run``: everything that would be built."""
    display = Display()
    setup, _ = _prepare(checked, display)
    for notice in setup.corpus.notices:
        display.say(notice, "yellow")
    _say_short_warmup(setup.recipe.train, display)
    setup.monitors()
    console = display.console
    table = Table("layer", "component", "from", "parameters", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[3].justify = "right"
    rows = preview.layer_rows(setup)
    for name, component, distribution, count in rows:
        table.add_row(name, component, distribution, f"{count:,}")
    table.add_row("total", "", "", f"{sum(row[3] for row in rows):,}", style="bold")
    console.print(table)
    console.print()
    display.table("Parameters by role", {role: f"{count:,}" for role, count in preview.role_rows(setup).items()})
    with memory_errors():
        memory = preview.memory_rows(setup)
    display.table("Memory", {name: f"{size / 2**20:,.1f} MiB" for name, size in memory.items()})
    display.table("Tokens", preview.token_rows(setup))
    display.table("Kernels", kernel_rows(setup))
    display.table("Device", {"device": str(setup.precision.device), "precision": setup.precision.dtype})
    display.say(f"dry run: no run was begun; encoded text is kept in {cache_folder(checked.recipe.data.cache)}")


def _prepare(checked: Checked, display: Display, ranks: Ranks = ONE) -> tuple[Setup, dict[str, str]]:
    """Everything that a new run needs, and the digests of its inputs besides text. What would stop the run later is
    raised here, before anything is begun."""
    setup = _set_up(checked, display, None, ranks)
    weights_of_init(setup, say=lambda sentence: display.say(sentence, "yellow"))
    _ask_stages(setup)
    return setup, input_digests(checked.recipe, checked.registry)


def _ask_stages(setup: Setup) -> None:
    """Raises RecipeError with every stage's reason not to begin; see ``optional_contracts.Refuses``."""
    found = []
    for use in setup.recipe.stages:
        stage = construct(use, setup)
        sentence = stage.refuse() if hasattr(stage, "refuse") else None
        if sentence is not None:
            found.append(f"{use.path}: {use.name}: {sentence}")
    if found:
        raise RecipeError(found)


def _inputs_of_resumed(directory: RunDirectory, lock: Lock, checked: Checked) -> dict[str, str]:
    """Digests of the inputs of a run that goes on: as the lock has them for what is in its checkpoints already."""
    locked = {
        key: str(value) for key, value in lock.table.get("digests", {}).items() if key not in ("data", "tokenizer")
    }
    folder = newest_folder(directory.path)
    done = -1 if folder == directory.path else stage_number(folder)
    begun = done >= 0 or bool(Checkpoints(directory.path).generations())
    taken = {f"stage_{number}" for number in range(done + 1)} | ({"init"} if begun else set())
    now = input_digests(checked.recipe, checked.registry, init=not begun, first_stage=done + 1)
    return {key: value for key, value in locked.items() if key in taken} | now


def _set_up(checked: Checked, display: Display, kept: Kept | None, ranks: Ranks = ONE) -> Setup:
    require_sinks(checked.recipe)
    join(ranks, checked.recipe)
    if checked.recipe.train.compile:
        require_compiler(choose_device(checked.recipe.train.device))
    require_recordable(checked.recipe, ranks.size)
    for change in checked.renamed:
        display.say(f"{checked.locate(change.path)}: {change}", "yellow")
    for problem in checked.registry.broken:
        display.say(f"plugin {problem}", "yellow")
    console = display.console
    if not console.is_terminal:
        return set_up(checked.recipe, checked.registry, kept=kept, ranks=ranks)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("preparing", total=None)

        def report(what: str, done: int, whole: int | None) -> None:
            bar.update(task, description=what, completed=done, total=whole)

        return set_up(checked.recipe, checked.registry, report=report, kept=kept, ranks=ranks)


def _drift(
    before: Lock, now: Lock, display: Display, allow_drift: bool, expected: Sequence[str] = ()
) -> list[str]:
    """What is not as the lock says, in sentences, besides what is ``expected`` to differ. Raises RecipeError when that
    is not allowed."""
    found = [str(one) for one in differences(before, now) if one.what not in expected]
    if found and not allow_drift:
        raise RecipeError(
            ["this is not what the lock says:", *(f"  {one}" for one in found), GO_ON]
        )
    for one in found:
        display.say(f"differs from the lock: {one}", "yellow")
    return found


def _say_short_warmup(train: Train, display: Display) -> None:
    if train.warmup_steps >= train.steps:
        reached = Rates(train)(train.steps - 1)
        display.say(
            f"train.warmup_steps is {train.warmup_steps} and train.steps {train.steps}: the learning rate is still "
            f"rising at the end and reaches {reached:.0%} of its peak",
            "yellow",
        )


def _start(
    setup: Setup,
    directory: RunDirectory,
    display: Display,
    drift: Sequence[str],
    *,
    longer: Longer | None = None,
    restart: bool = False,
    report: bool = False,
) -> None:
    parameters = parameter_count(setup.model)
    _say_short_warmup(setup.recipe.train, display)
    display.table(
        "",
        {
            "run": shown(directory.path),
            "model": f"{setup.recipe.model.name}, {parameters:,} parameters",
            "text": f"{setup.recipe.data.source.name}, {setup.corpus.extent}",
            "device": f"{setup.precision.device}, {setup.precision.dtype}",
        }
        | ({"processes": divided(setup)} if setup.ranks.size > 1 else {})
        | kernels_in_short(setup),
    )
    records = records_of(setup.ranks, directory)

    def lengthen() -> None:
        """A start that fails before its checkpoint is loaded leaves the planned steps as they were."""
        if longer is not None:
            lengthened = read_recipe(directory.recipe, longer.overrides, setup.registry)
            longer.write(directory, to_toml(lengthened.resolved))
            records.event(longer.event())
            display.say(longer.sentence())

    try:
        if drift:
            records.event({"event": "drift", "differences": list(drift)})
        run = Run(setup, directory, records, display, restart=restart, loaded=lengthen)
        with setup.ranks.ending(), memory_errors(directory.checkpoints):
            summary = run.go()
    except Halted:
        # A start that the gate refuses leaves nothing.
        if setup.ranks.rank == 0 and report and any(directory.checkpoints.glob("gen-*")):
            _draw(directory, None, 0, display)
        raise
    except Interrupted:
        if report and setup.ranks.size == 1:  # a launcher does not wait for it
            _draw_apart(directory, display)
        raise
    finally:
        display.finish()
        records.close()
    if setup.ranks.rank:
        return
    report_summary(summary, directory, display)
    if report:
        # A model that is divided among processes cannot be looked at by one.
        _draw(directory, run.setup if setup.ranks.shards == 1 else None, summary["steps"], display)


def _draw(directory: RunDirectory, setup: Setup | None, step: int, display: Display) -> None:
    """``report.html`` and its pictures; that it fails is said and costs nothing else."""
    from muse_core.report.writing import report_of_run

    display.finish()
    report_of_run(directory.path, setup, step, display.say)


def _draw_apart(directory: RunDirectory, display: Display) -> None:
    """The report of an interrupted run, without a sample, by a process of its own: so a further signal ends it at once,
    wherever the drawing is, and the exit code stays that of the first."""
    display.finish()
    command = [sys.executable, "-m", "muse_core", "report", str(directory.path)]
    try:
        display.say("drawing the report; a further signal leaves it out")
        drawn = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST_DRAWING)
        missing = (drawn.stderr.strip().splitlines() or ["it failed"])[-1] if drawn.returncode else None
    except (KeyboardInterrupt, SystemExit):
        missing = "another signal came"
    except (OSError, subprocess.TimeoutExpired) as error:
        missing = str(error)
    if missing is None:
        display.say(f"report: {shown(directory.path / 'report.html')}")
    else:
        display.say(f"no report was written: {missing}; make it later by muse report {typed(directory.path)}")
