"""What a report says in words and tables. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from muse_core.comparison.ratio import FEW_DOCUMENTS
from muse_core.report.reading import RunRead, finite, of_task

MOST_EVENTS = 200
"""Rows of the table of events; events.jsonl has all."""
MOST_NUMBERS = 10
"""Numbers of a probe in a cell; metrics.jsonl has all."""
MOST_SHOWN = 300
"""Characters of a value in a cell."""
CORE_MONITOR = "finite"
"""The judge of the core, which every run has."""
VERDICTS = ("skip", "rollback", "halt")


@attrs.frozen(kw_only=True)
class Table:
    """Cells as text."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    nothing: str = "There is none."
    """Said in place of a table without rows."""
    more: str = ""
    """Said below."""


def interval_over(summary: Mapping[str, Any]) -> str:
    """What a run's interval is over: documents, or the rows of the only one."""
    rows = summary.get("held_out_documents") == 1
    return f"95 % over {'rows of one document' if rows else 'documents'}, not seeds"


def told_interval(summary: Mapping[str, Any]) -> str:
    """A run's interval, and whether it is too narrow."""
    interval = summary["held_out_interval"]
    if interval is None:
        return "none, the text is one window"
    return f"{interval[0]:.4f} to {interval[1]:.4f}{weighs_as(summary)}"


def bits_unit(task: bool) -> str:
    """What bits are counted by, in words."""
    return "bits per token" if task else "bits per byte"


def weighs_as(summary: Mapping[str, Any]) -> str:
    """The documents behind a run's interval, where they are so few that it is narrower than it should be."""
    documents = summary.get("held_out_documents")  # runs of an earlier version do not have it
    if documents is None or documents >= FEW_DOCUMENTS:
        return ""
    count = round(documents)
    return f", too narrow: the text weighs as {count} document{'s' if count > 1 else ''} of equal size"


def _counts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What counting reaches on the same text, in bits per byte, and whether the run is better."""
    found = summary.get("references", {})
    told = [f"{name} {found[name]['bits_per_byte']:.4f}" for name in ("unigram", "bigram") if name in found]
    if told:
        yield "counts reach", ", ".join(told)
    if summary.get("not_better_than"):
        yield "not better than", ", ".join(summary["not_better_than"])


def key_numbers(run: RunRead) -> list[tuple[str, str]]:
    """The numbers that a reader looks for first."""
    summary = run.summary
    numbers = [("state", run.state)]
    if not summary:
        newest = run.train[-1] if run.train else {}
        numbers.append(("steps", _of_planned(run)))
        unit, counted = bits_unit(run.on_task), "counted tokens" if run.on_task else "tokens"
        for key, name in (("bits_per_byte", f"{unit} of training"), ("tokens_per_second", f"{counted} per second")):
            value = finite(newest, key)
            if value is not None:
                numbers.append((name, f"{value:,.4g}"))
        return numbers
    task = of_task(summary)
    trained = [
        ("steps", f"{summary['steps']:,} of {summary['planned_steps']:,}"),
        ("counted training tokens" if task else "training tokens", f"{summary.of_all_stages('train_tokens'):,}"),
        ("counted tokens per second" if task else "tokens per second", f"{summary['tokens_per_second']:,.0f}"),
    ]
    accuracy = [("held-out accuracy", f"{summary['held_out_accuracy']:.4f}")] if task else []
    return [
        *numbers,
        *accuracy,
        (f"held-out {bits_unit(task)}", f"{summary['held_out_bits_per_byte']:.4f}"),
        (interval_over(summary), told_interval(summary)),
        ("held-out loss", f"{summary['held_out_loss']:.4f} nats per token"),
        *_counts(summary),
        ("parameters", f"{summary['parameters']:,}"),
        *(trained if summary["steps"] else ()),
        ("rollbacks", str(summary["rollbacks"])),
        ("seed", str(summary["seed"])),
        ("device", f"{summary['device']}, {summary['precision']}"),
    ]


def _of_planned(run: RunRead) -> str:
    """Steps of a run that has not ended."""
    steps, planned = run.progress
    return f"{steps:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")


def runs_table(runs: Sequence[RunRead]) -> Table:
    """One row a run. What counts counted tokens, in a run on a task, says so."""
    rows = []
    for run in runs:
        s = run.summary
        interval = "{:.4f} to {:.4f}".format(*s["held_out_interval"]) if s and s["held_out_interval"] else ""
        unit, counted = (" per token", " counted") if s and of_task(s) else ("", "")
        rows.append((
            run.label, run.state, f"{s['held_out_bits_per_byte']:.4f}{unit}" if s else "", interval,
            f"{s['parameters']:,}" if s else "", f"{run.progress[0]:,}" if s else _of_planned(run),
            f"{s['tokens_per_second']:,.0f}{counted}" if s else "",
        ))
    return Table(
        columns=("run", "state", "held-out bits per byte", "95 % over text", "parameters", "steps", "tokens/s"),
        rows=rows,
    )


def monitors_table(run: RunRead) -> Table:
    """What each monitor of the recipe did: verdicts, warnings, vetoes, probes and the last numbers."""
    names = [str(monitor.get("use")) for monitor in run.recipe.get("monitors", []) if isinstance(monitor, dict)]
    rows = []
    for name in [CORE_MONITOR, *dict.fromkeys(names)]:
        verdicts = {action: 0 for action in VERDICTS}
        others = {"warning": 0, "uncertified": 0}
        last = ""
        for event in run.events:
            kind = event["event"]
            if kind in verdicts and name in str(event.get("monitor", "")).split(", "):
                verdicts[kind] += 1
                last = f"step {event.get('step', 0):,}: {event.get('reason', '')}"
            elif kind in others and f"{name}: " in str(event.get("reason", "")):
                others[kind] += 1
        probes = [row for row in run.probes if any(key.startswith(f"{name}/") for key in row)]
        did = [f"{count} × {action}" for action, count in (verdicts | others).items() if count]
        newest = _numbers(probes[-1], name) if probes else _numbers(run.train[-1] if run.train else {}, name)
        rows.append((name, ", ".join(did) or "no intervention", last, str(len(probes)), newest))
    return Table(columns=("monitor", "did", "last reason", "probes", "last numbers"), rows=rows)


def events_table(run: RunRead) -> Table:
    """Everything that events.jsonl has of the run, newest last."""
    rows = []
    for event in run.events[-MOST_EVENTS:]:
        when = finite(event, "time")
        told = {key: value for key, value in event.items()
                if key not in ("event", "time", "stage", "step", "x", "sequence", "attempt", "reason", "monitor")}
        rows.append((
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when is not None else "",
            f"{event['step']:,}" if "step" in event else "", str(event["event"]), str(event.get("monitor", "")),
            str(event.get("reason", "")) or ", ".join(f"{key} {_short(value)}" for key, value in told.items()),
        ))
    left = len(run.events) - len(rows)
    more = f"{left:,} earlier events stand in events.jsonl." if left else ""
    return Table(columns=("time", "step", "event", "monitor", "reason"), rows=rows, more=more,
                 nothing="No event was recorded.")


def recipe_differences(runs: Sequence[RunRead]) -> Table:
    """The keys of resolved recipes that differ, one column a run."""
    flat = [dict(flattened(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = []
    for key in keys:
        values = [one.get(key, "–") for one in flat]
        if len(set(values)) > 1:
            short = [value[:MOST_SHOWN] for value in values]
            rows.append((key, *(short if len(set(short)) == len(set(values)) else values)))
    return Table(columns=("key", *(run.label for run in runs)), rows=rows, nothing="The recipes are equal.")


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Key path → value as text, of every leaf of a recipe."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flattened(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from flattened(item, f"{path}[{number}]")
    else:
        yield path, _exactly(value)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:MOST_SHOWN]


def _exactly(value: Any) -> str:
    short = f"{value:.6g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short


def _numbers(row: dict[str, Any], monitor: str) -> str:
    own = [(key.partition("/")[2], value) for key, value in row.items() if key.startswith(f"{monitor}/")]
    told = ", ".join(f"{key} {format(value, '.4g') if isinstance(value, float) else value}"
                     for key, value in own[:MOST_NUMBERS])
    return told + (", …" if len(own) > MOST_NUMBERS else "") + (f" (step {row['step']:,})" if own else "")
