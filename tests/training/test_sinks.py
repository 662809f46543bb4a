"""Sinks: what they are told, and that one that fails or is slow ends no run and is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from muse_core.component import Component
from muse_core.errors import RecipeError
from muse_core.metrics import sinks
from muse_core.metrics.jsonl import read_rows
from muse_core.testing.loose import registry_with

HERE = __name__
Table = Callable[..., dict[str, Any]]


@attrs.frozen(kw_only=True)
class FileOptions:
    """A file."""

    fails_at: str = "never"
    """Where it raises: open, row, event, end, close or never."""


class File:
    """A line for everything that it is told."""

    name = "told.jsonl"

    def __init__(self, options: FileOptions, context: Any):
        self.path, self.fails_at = context.run / self.name, options.fails_at
        self.tell("open", {"name": context.name, "attempt": context.attempt, "steps": context.recipe["train"]["steps"]})

    def tell(self, what: str, row: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([what, row], default=str) + "\n")
        if what == self.fails_at:
            raise ConnectionError("the server is gone")

    def row(self, row: Any) -> None:
        self.tell("row", row)

    def event(self, row: Any) -> None:
        self.tell("event", row)

    def end(self, summary: Any) -> None:
        self.tell("end", summary)

    def close(self) -> None:
        self.tell("close", None)


class Other(File):
    name = "other.jsonl"


@attrs.frozen(kw_only=True)
class FarOptions:
    """Needs what nobody has."""

    packages = {"a_package_of_no_one": "far[away]"}


@pytest.fixture
def registry() -> Any:
    return registry_with(
        ("sink", Component("file", options=FileOptions, implementation=f"{HERE}:File")),
        ("sink", Component("other", options=FileOptions, implementation=f"{HERE}:Other")),
        ("sink", Component("far", options=FarOptions, implementation=f"{HERE}:File")),
    )


def told(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == name]


def test_a_sink_is_told_rows_events_and_the_end(table: Table, go: Any, tmp_path: Path) -> None:
    summary = go(table(telemetry={"sinks": ["file"]}))
    found = told(tmp_path / "run" / "told.jsonl")
    assert found[0] == ["open", {"name": "tiny", "attempt": 1, "steps": 8}]
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] != "schema"]
    assert [row["event"] for what, row in found if what == "row"] == [row["event"] for row in rows]
    assert [row["loss"] for what, row in found if what == "row"] == [row["loss"] for row in rows]
    assert [row["event"] for what, row in found if what == "event"] == [
        "gate", "not_learned"
    ], "what came after the first gate"
    assert [what for what, _ in found[-2:]] == ["end", "close"]
    assert found[-2][1]["held_out_loss"] == summary["held_out_loss"]
    assert not events(tmp_path, "sink_failed")


@pytest.mark.parametrize("moment", ["open", "row", "event", "end", "close"])
def test_a_sink_that_fails_is_said_once_and_ends_nothing(moment: str, table: Table, go: Any, tmp_path: Path) -> None:
    summary = go(table(telemetry={"sinks": [{"use": "file", "fails_at": moment}, "other"]}))
    assert summary["steps"] == 8
    (failed,) = events(tmp_path, "sink_failed")
    assert failed["sink"] == "sink 'file' of loose 0"
    assert failed["reason"].startswith("sink 'file' of loose 0 is left out from here on: ")
    assert "ConnectionError: the server is gone at " in failed["reason"]
    assert [what for what, _ in told(tmp_path / "run" / "told.jsonl")].count(moment) == 1, "it was asked again"
    if moment != "open":  # then there is none yet
        assert told(tmp_path / "run" / "told.jsonl")[-1][0] == "close", "what it holds stays open"
    others = [what for what, _ in told(tmp_path / "run" / "other.jsonl")]
    assert others.count("row") == 9 and others[-2:] == ["end", "close"], "another sink suffers"


def test_a_slow_sink_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock that each reading moves on by 4 s: a call takes 4 s, half of the time."""
    readings = iter(range(0, 4000, 4))
    monkeypatch.setattr(sinks.time, "monotonic", lambda: float(next(readings)))
    said: list[dict[str, Any]] = []
    group = sinks.Sinks(said.append)
    context = sinks.SinkContext(
        run=tmp_path, name="a", seed=0, recipe={"train": {"steps": 1}}, attempt=1
    )
    group._add("sink 'file' of loose 0", File(FileOptions(), context))
    group.row({"event": "train"})
    group.row({"event": "train"})
    assert said == []
    for _ in range(5):
        group.row({"event": "train"})
    (slow,) = said
    assert slow["event"] == "sink_slow" and slow["seconds"] == 12.0
    assert slow["reason"] == "sink 'file' of loose 0 has taken 12.0 s, 50% of the time so far, and the run waits for it"


def test_a_package_that_is_missing_is_said_before_the_run(table: Table, prepare: Any) -> None:
    setup = prepare(table(telemetry={"sinks": ["far"]}))
    with pytest.raises(RecipeError, match=r"telemetry\.sinks\[0\]: the package a_package_of_no_one is not installed - "
                                          r"pip install 'far\[away\]'"):
        sinks.require_sinks(setup.recipe)


def test_tensorboard_named_twice_is_one(table: Table, prepare: Any) -> None:
    both = prepare(table(telemetry={"tensorboard": True, "sinks": ["tensorboard"]})).recipe
    assert [use.name for use in sinks.chosen_sinks(both)] == ["tensorboard"]
