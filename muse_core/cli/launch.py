"""What ``muse-run`` does once its arguments are understood: prepare, show, start or go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from muse_core.errors import MuseError, RecipeError
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records
from muse_core.metrics.sinks import require_sinks
from muse_core.plugins.raised import blame
from muse_core.recipe import Checked, read_recipe, to_toml
from muse_core.recipe.lock import Lock, differences, read_lock
from muse_core.storage.run_directory import RunDirectory
from muse_core.training import preview
from muse_core.training.locking import lock_of
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up


def fresh(checked: Checked, lock: Lock | None, run_dir: Path | None, *, allow_drift: bool) -> None:
    """Start a run in a new directory; ``lock`` is what it must repeat, if anything."""
    display = Display()
    resolved = to_toml(checked.resolved)
    target = run_dir or Path("runs") / f"{checked.recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with RunDirectory.claim(target, resolved) as directory:
        setup = _prepare(checked, display)
        now = lock_of(checked, setup)
        drift = _drift(lock, now, display, allow_drift) if lock is not None else []
        directory.begin(source=checked.source.text or resolved, recipe=resolved, lock=to_toml(now.table))
        _start(setup, directory, display, drift)


def resumed(run_dir: Path, *, device: str | None, allow_drift: bool) -> None:
    """Go on with a run in its directory."""
    display = Display()
    with RunDirectory.open(run_dir) as directory:
        overrides = [] if device is None else [f'train.device="{device}"']
        checked = read_recipe(directory.recipe, overrides)
        setup = _prepare(checked, display)
        drift = _drift(read_lock(directory.lock), lock_of(checked, setup), display, allow_drift)
        _start(setup, directory, display, drift)


def show(checked: Checked) -> None:
    """``--dry-run``: everything that would be built."""
    display = Display()
    setup = _prepare(checked, display)
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
    display.table("Memory", {name: f"{size / 2**20:,.1f} MiB" for name, size in preview.memory_rows(setup).items()})
    display.table("Tokens", preview.token_rows(setup))
    display.table("Kernels", _kernel_rows(setup))
    display.table("Device", {"device": str(setup.precision.device), "precision": setup.precision.dtype})
    display.say("dry run: nothing was written")


def _prepare(checked: Checked, display: Display) -> Setup:
    require_sinks(checked.recipe)
    for problem in checked.registry.problems:
        display.say(f"plugin {problem}", "yellow")
    console = display.console
    if not console.is_terminal:
        return set_up(checked.recipe, checked.registry)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("preparing", total=None)

        def report(what: str, done: int, whole: int | None) -> None:
            bar.update(task, description=what, completed=done, total=whole)

        return set_up(checked.recipe, checked.registry, report=report)


def _drift(before: Lock, now: Lock, display: Display, allow_drift: bool) -> list[str]:
    """What is not as the lock says, in sentences. Raises RecipeError when that is not allowed."""
    found = [str(one) for one in differences(before, now)]
    if found and not allow_drift:
        raise RecipeError(
            ["this is not what the lock says:", *(f"  {one}" for one in found), "go on all the same with --allow-drift"]
        )
    for one in found:
        display.say(f"differs from the lock: {one}", "yellow")
    return found


def _shown(path: Path) -> str:
    """The path from here, when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _start(setup: Setup, directory: RunDirectory, display: Display, drift: Sequence[str]) -> None:
    parameters = sum(p.numel() for p in setup.model.parameters())
    display.table(
        "",
        {
            "run": _shown(directory.path),
            "model": f"{setup.recipe.model.name}, {parameters:,} parameters",
            "text": f"{setup.recipe.data.source.name}, {setup.corpus.extent}",
            "device": f"{setup.precision.device}, {setup.precision.dtype}",
        }
        | _kernel_rows(setup),
    )
    records = Records(directory.path)
    try:
        if drift:
            records.event({"event": "drift", "differences": list(drift)})
        summary = Run(setup, directory, records, display).go()
    except Exception as error:
        found = None if isinstance(error, MuseError) else blame(error, setup.registry.rows())
        if found:
            error.add_note(found)  # stands under the traceback
        raise
    finally:
        display.finish()
        records.close()
    _report(summary, directory, display)


def _kernel_rows(setup: Setup) -> dict[str, str]:
    rows = {}
    for key, chosen in setup.kernels.choices.items():
        passed = "".join(f"; not {name}: it {reason}" if reason.startswith("does") else f"; not {name}: {reason}"
                         for name, reason in chosen.refused)
        rows[key] = f"{chosen.backend} ({chosen.implementation}){passed}"
    return rows or {"kernels": "none needed"}


def _early_exit(summary: dict[str, Any]) -> dict[str, str]:
    """What leaving early saved of the blocks' matrix products on held-out text, where the model does so."""
    if "held_out_flops_spent" not in summary:
        return {}
    spent, saved = summary["held_out_flops_spent"], summary["held_out_flops_saved"]
    share = saved / max(spent + saved, 1)
    return {"early exit": f"{spent:.3g} FLOPs spent on held-out text, {saved:.3g} ({share:.1%}) saved"}


def _report(summary: dict[str, Any], directory: RunDirectory, display: Display) -> None:
    low, high = summary["held_out_interval"]
    rows = {
        "steps": f"{summary['steps']:,} of {summary['planned_steps']:,}"
        + (" (stopped by train.max_seconds)" if summary["stopped_by_time"] else ""),
        "held out": f"{summary['held_out_bits_per_byte']:.4f} bits/byte (95 % {low:.4f} to {high:.4f}) on "
        f"{summary['held_out_tokens']:,} {summary['held_out_split']} tokens",
        "loss": f"{summary['held_out_loss']:.4f} nats/token, perplexity {summary['held_out_perplexity']:.3f}",
        **_early_exit(summary),
        "speed": f"{summary['tokens_per_second']:,.0f} tokens/s over {summary['train_seconds']:.1f} s of training",
        "rollbacks": str(summary["rollbacks"]),
        **{f"{monitor} at {numbers['step']}": _numbers(numbers) for monitor, numbers in summary["probes"].items()},
        "files": _shown(directory.path),
    }
    display.console.print()
    display.table("Done", rows)


MOST_SHOWN = 8
"""Numbers of a probe that the report prints; summary.json has all."""


def _numbers(probe: dict[str, Any]) -> str:
    """The numbers of a probe on one line."""
    named = [(name, value) for name, value in probe.items() if name != "step"]
    parts = [f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in named]
    return ", ".join(parts[:MOST_SHOWN]) + (", …" if len(parts) > MOST_SHOWN else "")
