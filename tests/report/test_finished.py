"""summary.json and held_out.json that were cut, edited or come from elsewhere are named, by every command that reads
them, and nothing is counted from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import muse_core
from muse_core.cli import muse
from muse_core.comparison.ratio import read_rows
from muse_core.errors import StorageError
from muse_core.metrics.finished import SHOWN, Summary, read_summary
from muse_core.report.reading import read_run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a comparison that should have been refused may write."""
    monkeypatch.chdir(tmp_path)


def edit(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; a key that is set to Ellipsis is left out."""
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not ...}))


EDITS = {
    **{f"without {key}": {key: ...} for key in SHOWN},
    "a text for a number": {"parameters": "many"}, "a truth value for a number": {"steps": True},
    "a share of a step": {"planned_steps": 40.5}, "three bounds": {"held_out_interval": [1.0, 2.0, 3.0]},
    "no bounds": {"held_out_interval": ["low", None]}, "null": {"held_out_bits_per_byte": None},
    "a number": {"device": 3},
}


@pytest.mark.parametrize("changes", EDITS.values(), ids=EDITS)
def test_a_summary_that_lacks_what_is_shown_is_named(made_run, changes: dict) -> None:
    run = made_run("one")
    edit(run / "summary.json", **changes)
    with pytest.raises(StorageError, match=rf"one/summary.json: .*{next(iter(changes))}.* muse-run --resume .*one "):
        read_run(run)


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", "[" * 100_000, "\xff"])
def test_every_command_names_a_summary_that_is_none(made_run, tmp_path: Path, text: str) -> None:
    whole, run = made_run("whole"), made_run("damaged")
    (run / "summary.json").write_text(text, encoding="latin-1")
    commands = [["show", str(run)], ["show", "--json", str(run)], ["report", str(run)],
                ["report", str(run), str(whole), "-o", str(tmp_path / "out")], ["compare", str(run), str(whole)]]
    for command in commands:
        found = CliRunner().invoke(muse, command)
        assert found.exit_code == 3 and f"{run / 'summary.json'}: " in found.output, (command, found.output)
    several = CliRunner().invoke(muse, ["show", str(run), str(whole)])
    assert several.exit_code == 0 and str(whole) in several.output, "the others are shown"
    (row,) = [row for row in muse_core.runs(run, whole) if row["run"] == str(run)]
    assert row["state"].startswith("cannot be read: ")


def test_keys_that_only_some_runs_have_are_asked_for_when_they_are_needed(made_run) -> None:
    """A plan's sweep reads one number, and runs of an earlier version lack some."""
    run = made_run("one")
    found = read_summary(run)
    assert found.get("held_out_accuracy") is None and found["held_out_loss"] == 1.5
    with pytest.raises(StorageError, match="summary.json: has no held_out_accuracy"):
        found["held_out_accuracy"]
    edit(run / "summary.json", held_out_loss="nan")
    assert read_summary(run)["held_out_loss"] != read_summary(run)["held_out_loss"], "NaN is a number"
    assert read_summary(run.parent) == {} == Summary(run / "summary.json")


COLUMNS = {
    "nats are cut": {"nats": [1.0, 2.0]}, "no documents": {"document": ...}, "no nats": {"nats": ...},
    "a name for a document": {"document": [0, 1, 2, "x"]}, "half a document": {"document": [0, 1, 2, 3.5]},
    "null": {"nats": [1.0, None, 2.0, 3.0]}, "a text": {"nats": [1.0, "2.0", 2.0, 3.0]}, "a number": {"nats": 3.0},
    "negative bytes": {"bytes": [400.0, -300.0, 500.0, 200.0]}, "infinite bytes": {"bytes": [1.0, 1.0, 1.0, "inf"]},
    "no bytes": {"bytes": [0, 0, 0, 0]}, "nothing": {"nats": [], "bytes": [], "document": []},
}


@pytest.mark.parametrize("changes", COLUMNS.values(), ids=COLUMNS)
def test_rows_that_are_none_are_named_and_not_compared(made_run, changes: dict) -> None:
    whole, run = made_run("whole"), made_run("damaged")
    edit(run / "held_out.json", **changes)
    for pair in ((run, whole), (whole, run)):
        found = CliRunner().invoke(muse, ["compare", *map(str, pair)])
        assert found.exit_code == 3 and f"{run / 'held_out.json'}: cannot be read" in found.output, found.output


def test_losses_that_are_not_finite_are_rows_all_the_same(made_run) -> None:
    run = made_run("one")
    edit(run / "held_out.json", nats=[1.0, "nan", "inf", 2])
    assert read_rows(run, "bits_per_byte", math.nan).above.tolist()[2:] == [float("inf"), 2.0]
    edit(run / "held_out.json", nats=[1.0, 1.0, "inf", 2])
    assert read_rows(run, "bits_per_byte", math.inf).above.tolist()[2:] == [float("inf"), 2.0]


def test_rows_of_another_end_than_the_summary_are_not_compared(made_run) -> None:
    """Extended, and killed between the two files of its new end."""
    whole, run = made_run("whole"), made_run("extended")
    bits = read_summary(run)["held_out_bits_per_byte"]
    rows = read_rows(run, "bits_per_byte", bits)
    assert rows.above.sum() / math.log(2) / rows.below.sum() == pytest.approx(bits)
    read_rows(run, "accuracy", 0.0)
    edit(run / "held_out.json", nats=[0.9 * nats for nats in rows.above])
    for pair in ((run, whole), (whole, run)):
        found = CliRunner().invoke(muse, ["compare", *map(str, pair)])
        assert found.exit_code == 3
        assert "held_out.json: its rows have 0.9 bits per byte and summary.json 1," in found.output


@pytest.mark.parametrize("changes", [
    {"parameters": 3}, {"parameters": [{"component": "x"}]}, {"parameters": [{"component": "x", "parameters": "many"}]},
    {"sample": "text"}, {"sample": {"step": 1}},
    {"sample": {"step": "x", "prompt": "", "text": "", "temperature": 1, "seed": 0}},
    {"times": []}, {"times": {"rows": [3]}}, {"times": {"tokens": "many"}},
])
def test_the_content_of_a_report_is_checked_before_it_is_drawn(made_run, tmp_path: Path, changes: dict) -> None:
    run = made_run("one")
    edit(run / "report.json", **changes)
    found = CliRunner().invoke(muse, ["report", str(run), "-o", str(tmp_path / "out")])
    assert found.exit_code == 3 and "report.json: is damaged" in found.output and "--model" in found.output


@pytest.mark.parametrize("suites", [
    [], 3, {"needles": 3}, {"needles": [3]}, {"needles": [{"form": "a", "length": "x", "by_depth": [0.5]}]},
    {"needles": [{"form": "a", "length": 64, "by_depth": 3}]},
    {"needles": [{"form": "a", "length": 64, "by_depth": ["x"]}]},
])
def test_an_evaluation_of_another_shape_is_no_needle_map(made_run, suites: object) -> None:
    run = made_run("one")
    sound = {"form": "single", "length": 64, "by_depth": [0.0, 1.0]}
    (run / "evaluation-0.json").write_text(json.dumps({"suites": suites}))
    (run / "evaluation-1.json").write_text(json.dumps({"suites": {"needles": [sound]}}))
    assert read_run(run).needle_maps == [sound]
