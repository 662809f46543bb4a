"""Probes in a run: their failure warns or halts, after the last step too; what they find is in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muse_core.errors import Halted
from muse_core.training.records import read_rows

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

HARD = {"use": "niah-probe", "needles": 2, "budget": 1.0, "minimum_margin": 50.0}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "events.jsonl") if row["event"] == kind]


@pytest.mark.parametrize("every, where", [(3, "at step 3"), (4, "after step 4")], ids=["before the end", "at the end"])
def test_a_failed_probe_halts_by_option(table: Table, go: Go, tmp_path: Path, every: int, where: str) -> None:
    """At the last step there is no step after it whose judgement could notice."""
    with pytest.raises(Halted, match=f"halted {where} by niah-probe: memory gains") as caught:
        go(table(train={"steps": 4}, monitors=[HARD | {"failure": "halt", "every": every}]))
    assert caught.value.exit_code == 4
    assert len(events(tmp_path / "run", "halt")) == 1


@pytest.mark.parametrize("every", [3, 4])
def test_a_failed_probe_warns_by_default(table: Table, go: Go, tmp_path: Path, every: int) -> None:
    summary = go(table(train={"steps": 4}, monitors=[HARD | {"every": every}]))
    assert summary["steps"] == 4 and summary["probes"]["niah-probe"]["failed"] == 1.0
    (warning,) = events(tmp_path / "run", "warning")
    assert "less than 50" in warning["reason"]
