"""Rows that a rollback or a resumption took back count nowhere, and rows of several stages stay apart."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import muse_core
from muse_core.cli import muse
from muse_core.errors import Halted
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.metrics.recorder import Telemetry
from muse_core.metrics.standing import place_of, standing
from muse_core.report.reading import read_run
from muse_core.report.tables import events_table


def train(step: int, stage: int = 0, **more: object) -> dict:
    return {"event": "train", "stage": stage, "step": step, "loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.5} | more


def final(length: int, loss: float) -> dict:
    return {"event": "final", "split": "validation", "length": length, "loss": loss}


def add(run: Path, *rows: dict, attempt: int | None = None) -> None:
    with contextlib.closing(Records(run, attempt=attempt)) as records:
        for row in rows:
            records.metrics(row) if row["event"] in ("train", "eval", "final") else records.event(row)


def places(rows: list[dict], event: str = "train") -> list[tuple[int, int]]:
    return [place_of(row) for row in rows if row["event"] == event]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.sampled_from(["train", "eval"])), max_size=40))
def test_what_stands_is_in_order_once_each_and_nothing_that_later_rows_took_back(drawn: list) -> None:
    rows = [{"event": event, "stage": stage, "step": step, "number": n} for n, (stage, step, event) in enumerate(drawn)]
    found = standing(rows)
    expected = [  # by the definition, in quadratic time
        row for n, row in enumerate(rows)
        if not any(place_of(later) < place_of(row) or (place_of(later), later["event"]) == (place_of(row), row["event"])
                   for later in rows[n + 1:])
    ]
    assert found == expected
    assert [place_of(row) for row in found] == sorted(place_of(row) for row in found)


def test_a_resumption_takes_back_rows_before_it_has_one() -> None:
    rows = [train(step, attempt=1) for step in (1, 2, 3, 4)]
    resumed = {"event": "resume", "stage": 0, "step": 2, "attempt": 2}
    assert places(standing(rows, [resumed])) == [(0, 1), (0, 2)]
    assert places(standing([*rows, train(3, attempt=2)], [resumed])) == [(0, 1), (0, 2), (0, 3)]
    of_an_earlier_version = {key: value for key, value in resumed.items() if key != "stage"}
    assert len(standing(rows, [of_an_earlier_version])) == 4, "it may be of a later stage"


def test_of_the_ends_of_a_run_the_last_one_counts() -> None:
    ends = [final(32, 2.0), final(64, 2.1), train(5), final(32, 1.0), final(64, 1.1)]
    assert [row["loss"] for row in standing(ends) if row["event"] == "final"] == [1.0, 1.1]
    assert [row["loss"] for row in standing(ends[:3]) if row["event"] == "final"] == [2.0, 2.1]


def test_a_run_that_ended_before_what_it_had_lost_is_shown_as_it_ended(made_run) -> None:
    """Killed at step 40 with a checkpoint of step 30, gone on with to step 34 in all."""
    path = made_run("one")
    add(path, {"event": "resume", "stage": 0, "step": 30}, train(32, bits_per_byte=7.0), train(34, bits_per_byte=8.0),
        final(32, 1.0), attempt=2)
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 34, "planned_steps": 34}))
    run = read_run(path)
    assert run.state == "done" and run.steps == 34
    assert [row["x"] for row in run.train][-3:] == [30, 32, 34] and run.train[-1]["bits_per_byte"] == 8.0
    assert [row["x"] for row in run.evaluations] == [10, 20, 30] == [row["x"] for row in run.probes]
    told = json.loads(CliRunner().invoke(muse, ["show", str(path), "--json"]).stdout)
    assert (told["steps"], told["train"]["step"], told["eval"]["step"]) == (34, 34, 30)


def test_a_run_that_goes_on_after_its_end_and_dies_is_not_done(made_run) -> None:
    path = made_run("one")
    add(path, final(32, 1.0))
    assert read_run(path).state == "done"
    add(path, {"event": "resume", "stage": 0, "step": 40}, train(41))
    assert read_run(path).state == "unfinished" and read_run(path).steps == 41
    add(path, train(42), final(32, 0.9))
    assert read_run(path).state == "done"


def test_a_stop_between_two_rows_tells_its_step(made_run) -> None:
    path = made_run("one")
    (path / "summary.json").write_text(json.dumps(json.loads((path / "summary.json").read_text()) | {"steps": 43}))
    assert read_run(path).steps == 43, "stopped by train.max_seconds, behind the last row"
    for event in ("interrupted", "halt"):
        unfinished = made_run(event, finished=False)
        add(unfinished, {"event": event, "stage": 0, "step": 44})
        assert read_run(unfinished).steps == 44


def test_events_of_a_later_stage_stand_at_its_steps(made_run) -> None:
    path = made_run("one", finished=False)
    with pytest.raises(Halted), Telemetry(Records(path)) as telemetry:
        telemetry.begin(1)
        telemetry.metrics(train(3))
        telemetry.event({"event": "warning", "step": 3, "reason": "of stage 1"})
        raise Halted("at the end", {"step": 5, "reason": "at the end"})
    run = read_run(path)
    assert [(row["event"], row["x"]) for row in run.events[-2:]] == [("warning", 43), ("halt", 45)]
    assert run.steps == 45 and "stage" not in events_table(run).rows[-1][-1]


def test_rows_of_several_stages_are_all_there_from_python(finished_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (stage,) = {row["stage"] for row in read_rows(path / "metrics.jsonl") if row["event"] == "train"}
    before = muse_core.load(path).records()
    add(path, *(train(step, stage + 1) for step in (1, 2, 3)))
    add(path, train(2, stage + 1, loss=9.0))
    found = muse_core.load(path).records()
    assert found[: len(before)] == before and stage == 0
    assert [(row["step"], row["loss"]) for row in found[len(before):]] == [(1, 1.0), (2, 9.0)]
