"""What the tables say that a run prints before its first and after its last step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from muse_core.errors import typed
from muse_core.evaluation.references import MEANING
from muse_core.metrics.console import Display, shown
from muse_core.model.kernels import NOT_OFFERED
from muse_core.report.reading import of_task
from muse_core.report.tables import interval_over, told_interval
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.setup import Setup

MOST_SHOWN = 8
"""Numbers of a probe that are printed; summary.json has all."""


def kernel_rows(setup: Setup) -> dict[str, str]:
    """Operation with its sizes → the backend that serves it, and why those before it do not."""
    rows = {}
    for key, chosen in setup.kernels.selections.items():
        passed = "".join(f"; not {name}: it {reason}" if reason.startswith("does") else f"; not {name}: {reason}"
                         for name, reason in chosen.refused)
        rows[key] = f"{chosen.backend} ({chosen.implementation}){passed}"
    return rows or {"kernels": "none needed"}


def kernels_in_short(setup: Setup) -> dict[str, str]:
    """A row of which backend serves which operations, and one for each backend that could have served some and did not;
    ``--dry-run`` has all of it, with sizes."""
    served: dict[str, dict[str, None]] = {}
    reasons: dict[str, dict[str, dict[str, None]]] = {}
    for chosen in setup.kernels.selections.values():
        served.setdefault(chosen.backend, {})[chosen.operation] = None
        for name, reason in chosen.refused:
            if reason != NOT_OFFERED:
                reasons.setdefault(name, {}).setdefault(reason, {})[chosen.operation] = None
    asked = {operation for operations in served.values() for operation in operations}
    rows = {"kernels": "; ".join(f"{name}: {', '.join(operations)}" for name, operations in served.items())}
    for name, found in reasons.items():
        told = (reason if set(operations) == asked else f"{reason} ({', '.join(operations)})"
                for reason, operations in found.items())
        rows[f"not {name}"] = "; ".join(told)
    return rows if served else {"kernels": "none needed"}


def _early_exit(summary: dict[str, Any]) -> dict[str, str]:
    """What leaving early saved of the blocks' matrix products on held-out text, where the model does so."""
    if "held_out_flops_spent" not in summary:
        return {}
    spent, saved = summary["held_out_flops_spent"], summary["held_out_flops_saved"]
    share = saved / max(spent + saved, 1)
    return {"early exit": f"{spent:.3g} FLOPs spent on held-out text, {saved:.3g} ({share:.1%}) saved"}


def _in_training(summary: dict[str, Any]) -> dict[str, str]:
    share = summary.get("held_out_in_training")  # runs of an earlier version do not have it
    if share is None:
        return {}
    return {"seen": f"{share:.1%} of the {summary['held_out_split']} text stands word for word in training text"}


def _beside_counts(summary: dict[str, Any]) -> dict[str, str]:
    """What the simplest predictors reach on the same text."""
    found = {name: part for name, part in summary["references"].items() if name in MEANING}
    told = ", ".join(f"{name} {part['bits_per_byte']:.4f}" for name, part in found.items())
    return {"baselines": f"{told} {_unit(summary)}"} if told else {}


def _unit(summary: dict[str, Any]) -> str:
    return "bits/token" if of_task(summary) else "bits/byte"


def _counted(summary: dict[str, Any]) -> str:
    """What stands before tokens of a task, of which those with a label that counts are a small part."""
    return "counted " if of_task(summary) else ""


def _accuracy(summary: dict[str, Any]) -> dict[str, str]:
    """What a task is about."""
    return {"accuracy": f"{summary['held_out_accuracy']:.4f} of the labels that count"} if of_task(summary) else {}


def _steps(summary: dict[str, Any], run: Path) -> dict[str, str]:
    """Nothing where no stage trained, as by ``muse compress --steps 0``."""
    stopped = (
        f" (stopped by train.max_seconds; go on with muse-run --resume {typed(shown(run))})"
        if summary["stopped_by_time"] else ""
    )
    told = {"steps": f"{summary['steps']:,} of {summary['planned_steps']:,}{stopped}"}
    return told if summary["steps"] or stopped else {}


def _speed(summary: dict[str, Any]) -> dict[str, str]:
    """Nothing where no stage trained."""
    seconds = summary["train_seconds"]
    if math.isnan(seconds):
        return {"speed": "not known: metrics.jsonl lacks rows of these steps"}
    told = f"{summary['tokens_per_second']:,.0f} {_counted(summary)}tokens/s over {seconds:.1f} s of training"
    return {"speed": told} if seconds else {}


def _all_stages(summary: dict[str, Any]) -> dict[str, str]:
    """What several stages trained together, of which the last one alone is in the rows beside."""
    tokens = summary.get("train_tokens_all_stages", summary["train_tokens"])
    if tokens == summary["train_tokens"]:
        return {}
    seconds = summary["train_seconds_all_stages"]
    told = f"{tokens:,} {_counted(summary)}training tokens" + ("" if math.isnan(seconds) else f" in {seconds:.1f} s")
    return {"all stages": f"{told}; steps and speed are of the last one"}


def report_summary(summary: dict[str, Any], directory: RunDirectory, display: Display) -> None:
    """The table of a finished run."""
    rows = {
        **_steps(summary, directory.path),
        **_accuracy(summary),
        "held out": f"{summary['held_out_bits_per_byte']:.4f} {_unit(summary)} "
        f"({interval_over(summary)}: {told_interval(summary)}) on "
        f"{summary['held_out_tokens']:,} {_counted(summary)}{summary['held_out_split']} tokens",
        **_in_training(summary),
        "loss": f"{summary['held_out_loss']:.4f} nats/token, perplexity {summary['held_out_perplexity']:.3f}",
        **_beside_counts(summary),
        **_early_exit(summary),
        **_speed(summary),
        **_all_stages(summary),
        "rollbacks": str(summary["rollbacks"]),
        **{f"{monitor} at {numbers['step']}": _numbers(numbers) for monitor, numbers in summary["probes"].items()},
        "files": shown(directory.path),
    }
    display.console.print()
    worse = summary["not_better_than"]
    display.table(f"Done, but not better than {MEANING[worse[0]]}" if worse else "Done", rows)


def _numbers(probe: dict[str, Any]) -> str:
    """The numbers of a probe on one line."""
    named = [(name, value) for name, value in probe.items() if name != "step"]
    parts = [f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in named]
    return ", ".join(parts[:MOST_SHOWN]) + (", …" if len(parts) > MOST_SHOWN else "")
