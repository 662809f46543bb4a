"""The sinks with the real libraries, without a network; each in a process of its own, since both keep global state."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from muse_trackers.trackio_sink import run_name

from muse_core.errors import RecipeError
from muse_core.metrics.jsonl import read_rows
from muse_core.metrics.sinks import require_sinks
from muse_core.recipe import check_table
from muse_core.testing import PluginSuite, warm

RECIPE = """
format = 2
name = "tracked"
data = { use = "state-of-the-union", tokenizer = "bytes" }
telemetry = { sinks = [SINK] }

[model]
width = 16
depth = 1

[[model.block]]
use = "feed-forward"

[train]
steps = 4
batch_size = 2
sequence_length = 16
warmup_steps = 1
log_every = 1
device = "cpu"

[evaluate]
every = 2
tokens = 64
final_tokens = 64
"""


def installed(package: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{package} is not installed: pip install 'muse-trackers[{package}]'")


class TestDistribution(PluginSuite):
    distribution = "muse-trackers"


def muse_run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``muse-run`` with these arguments, no account and nothing of the user's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))}
    environment |= {"HOME": str(folder), "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1", "MUSE_REPORT": "0"}
    command = [sys.executable, "-m", "muse_core.cli.run", *map(str, arguments)]
    return warm.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def run_with(folder: Path, sink: str) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.toml").write_text(RECIPE.replace("SINK", sink), encoding="utf-8")
    ended = muse_run(folder, "recipe.toml", "--run-dir", "run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def train_rows(folder: Path) -> list[dict]:
    return [row for row in read_rows(folder / "run" / "metrics.jsonl") if row["event"] == "train"]


def failures(folder: Path) -> list[dict]:
    return [row for row in read_rows(folder / "run" / "events.jsonl") if row["event"].startswith("sink_")]


@installed("trackio")
def test_trackio_has_the_numbers_of_the_rows_also_of_a_longer_run(tmp_path: Path) -> None:
    run_with(tmp_path, '{ use = "trackio", project = "tests", folder = "numbers" }')
    ended = muse_run(tmp_path, "--resume", "run", "--steps", 6)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not failures(tmp_path)
    (database,) = (tmp_path / "numbers").glob("tests*.db")
    with sqlite3.connect(database) as opened:
        found = opened.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in found} == {run_name(tmp_path / "run")}, "the resumed run has another name"
    numbers = [(step, json.loads(metrics)) for _, step, metrics in found]
    logged = {step: row for step, row in numbers if "train/loss" in row}
    rows = {row["step"]: row for row in train_rows(tmp_path)}
    assert set(logged) == set(rows) == {1, 2, 3, 4, 5, 6}
    assert all(logged[step]["train/loss"] == row["loss"] for step, row in rows.items())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_loss"] in [row.get("summary/held_out_loss") for _, row in numbers]
    assert not (tmp_path / "hub").exists(), "something stands in the user's own folders"


def test_runs_of_one_folder_name_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / plan / arm / "test-seed-1" for plan in ("a", "b") for arm in ("mag", "delta")]
    assert len({run_name(run) for run in runs}) == 4 and run_name(runs[0]).startswith("mag-test-seed-1-")
    monkeypatch.chdir(tmp_path)
    assert run_name(runs[0].relative_to(tmp_path)) == run_name(runs[0]), "it depends on the working directory"


@installed("wandb")
def test_wandb_offline_writes_into_the_run_alone(tmp_path: Path) -> None:
    run_with(tmp_path, '"wandb"')
    assert not failures(tmp_path)
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for key in (b"train/loss", b"eval/bits_per_byte", b"final/16/loss", b"summary/held_out_loss"):
        assert key in content, key
    assert all(str(row["loss"]).encode() in content for row in train_rows(tmp_path))
    ended = muse_run(tmp_path, "--resume", "run", "--steps", 6)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not failures(tmp_path) and len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2


@installed("trackio")
def test_another_folder_in_one_process_is_said(tmp_path: Path) -> None:
    program = (
        "from muse_trackers.trackio_sink import imported\n"
        f"imported({str(tmp_path / 'a')!r})\n"
        f"try:\n    imported({str(tmp_path / 'b')!r})\nexcept Exception as error:\n    print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "this process has Trackio's database in" in ended.stdout, ended.stderr


def test_the_plugin_imports_neither_library() -> None:
    program = "import sys, muse_trackers.plugin\nprint({'torch', 'trackio', 'wandb'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert ended.stdout == "set()\n", ended.stderr


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_without_the_library_a_run_is_refused_with_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from muse_core.metrics import sinks

    recipe = check_table({"name": "a", "model": {"block": ["feed-forward"]}, "telemetry": {"sinks": [name]}}).recipe
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda package: None)
    said = rf"telemetry\.sinks\[0\]: the package {name} is not .*muse-trackers\[{name}\]"
    with pytest.raises(RecipeError, match=said):
        require_sinks(recipe)
