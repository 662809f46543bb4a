"""The rows of metrics.jsonl, read from ``muse_core.metrics.schema``."""

from __future__ import annotations

from muse_core.metrics.schema import BOOKKEEPING, EVENTS, SCHEMA, Event, Key

from .prose import cell

PAGE = "reference/telemetry.md"

INTRODUCTION = f"""\
`metrics.jsonl` in a run's directory has one JSON object a line, append-only. This is schema {SCHEMA}: the first row of
every attempt says which schema its rows follow. The number grows when a key changes its meaning or goes; new keys do
not change it, so read keys by name and pass over those that you do not know.

Numbers are float64 and survive to the last bit; NaN and infinities are the strings `"nan"`, `"inf"` and `"-inf"`. A
stretch of steps that was repeated after a rollback or a crash stays in the file: of rows with the same event, stage and
step the last one counts.

`muse_core.metrics.schema.json_schema()` gives the same as a JSON schema of a row."""

READING = """\
## How a step is measured

Layers, objective and monitors return their numbers as scalars on the device. The loop adds them up over micro-batches,
packs all into one float64 tensor and reads that once a step, before the optimiser: enough to judge the step. Rows are
written from what was read; evaluation and probes run at intervals of their own. A test counts the reads."""


def pages() -> dict[str, str]:
    parts = ["# Telemetry", INTRODUCTION, "## In every row", _table(BOOKKEEPING)]
    for name, event in EVENTS.items():
        parts += [f"## `{name}`", event.doc, _table(event.keys), *_others(event)]
    return {PAGE: "\n\n".join([*parts, READING])}


def _others(event: Event) -> list[str]:
    return [f"Besides: {event.others}"] if event.others else []


def _table(keys: tuple[Key, ...]) -> str:
    lines = ["| key | type | unit | meaning |", "|---|---|---|---|"]
    for key in keys:
        kind = key.type + (" or null" if key.null else "") + ("" if key.always else ", where there is one")
        lines.append(f"| `{key.name}` | {kind} | {key.unit or '—'} | {cell(key.doc, PAGE)} |")
    return "\n".join(lines)
