"""Which rows of a run's records count, where a rollback or a resumption did steps again. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]


def standing(rows: Iterable[Row], events: Iterable[Mapping[str, Any]] = ()) -> list[Row]:
    """The rows that count, in their order.

    A row with a step takes back what was recorded before it of later steps and stages, and its own event of the same
    step: a rollback, or the process after a crash, began again before them, whether it came as far a second time or
    not. The events ``resume`` and ``restart`` of ``events`` say the same before there is a row. Of ``final`` rows the
    last one of each split and length counts.
    """
    kept: list[tuple[int, Row]] = []
    others: dict[Any, tuple[int, Row]] = {}
    for number, row in enumerate(rows):
        if "step" not in row:
            final = row.get("event") == "final"
            others[("final", row.get("split"), row.get("length")) if final else number] = (number, row)
            continue
        while kept and place_of(kept[-1][1]) > place_of(row):
            kept.pop()
        begin = len(kept)
        while begin and place_of(kept[begin - 1][1]) == place_of(row):
            begin -= 1
        kept[begin:] = [one for one in kept[begin:] if one[1].get("event") != row.get("event")]
        kept.append((number, row))
    for event in events:
        # Events of earlier versions do not tell their stage.
        if event.get("event") in ("resume", "restart") and "stage" in event and "step" in event:
            kept = [one for one in kept if one[1].get("attempt", 0) >= event.get("attempt", 0)
                    or place_of(one[1]) <= place_of(event)]
    return [row for _, row in sorted([*kept, *others.values()], key=lambda one: one[0])]


def place_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """Stage and step."""
    return row.get("stage", 0), row["step"]
