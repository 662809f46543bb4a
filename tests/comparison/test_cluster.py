"""Runs of a comparison as jobs of submitit's local executor, which are processes of this host under its supervision."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from muse_core.cli.compare import compare
from muse_core.comparison.cells import reported_cells
from muse_core.comparison.cluster import Cluster, run_here
from muse_core.comparison.plan import read_plan
from muse_core.comparison.slots import Slots
from muse_core.errors import RecipeError
from muse_core.training.stop import Stop
from tests.commands import called
from tests.comparison.conftest import tiny_recipe

installed = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="the extra cluster is not installed: pip install submitit"
)
BLOCK = '[{ use = "feed-forward" }]'
PLAN = """\
name = "two"
baseline = "narrow"
seeds = [1]
split = "validation"
parameters = "any"
arms = [
    { name = "narrow", recipe = "r.toml" },
    { name = "wide", recipe = "r.toml", set = ["model.block[0].multiple=8.0"] },
]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(tiny_recipe(4, BLOCK))
    (tmp_path / "p.toml").write_text(PLAN)
    return tmp_path / "p.toml"


call = partial(called, compare)


@installed
def test_jobs_stop_when_asked_and_further_ones_go_on_to_the_report(plan: Path, tmp_path: Path) -> None:
    """The first call's time is up while its job trains; the second's jobs go on from what it saved, or begin."""
    (tmp_path / "r.toml").write_text(tiny_recipe(600, BLOCK) + "every = 600\n")
    out, said = tmp_path / "out", []
    cells = reported_cells(read_plan(plan), out, {"narrow": None, "wide": None})
    metrics = [cell.path / "metrics.jsonl" for cell in cells]

    class Trained(Stop):
        requested = property(lambda self: any(one.is_file() and '"train"' in one.read_text() for one in metrics))
        interrupted = False

    slots = Slots(count=1, gpus=[], say=said.append, stop=Trained(None), launch=Cluster("local", out / "jobs"))
    slots.work(lambda: [c for c in cells if not c.settled()], lambda: None)
    assert not slots.running and sum("to be continued" in text for text in said) == 1, said
    begun = [cell for cell in cells if cell.newest()]
    assert len(begun) == 1 and not any(cell.settled() for cell in cells)
    assert not list((out / "jobs").glob("stop-*")), "the files that ask are gone"
    done = call(plan, "-o", out, "--cluster", "local", "--slots", "2", "--job", "timeout_min=10")
    assert done.exit_code == 0 and (out / "report.md").is_file(), done.output
    assert done.output.count("goes on") == 1 and done.output.count(": done in") == 2, done.output
    assert all(cell.summary() for cell in cells)
    assert all('"resume"' in (cell.path / "events.jsonl").read_text() for cell in begun)


@installed
def test_a_job_that_is_lost_is_begun_again_and_one_that_fails_says_why(plan: Path, tmp_path: Path) -> None:
    launch = Cluster("local", tmp_path / "jobs")
    log = tmp_path / "log.txt"
    failing = launch([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(2)"], log, {"A": "b"})
    assert failing.wait(60) == 2 and "no such thing" in log.read_text() and failing.poll() == 2
    lost = launch([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"], log, {})
    with pytest.raises(subprocess.TimeoutExpired):
        lost.wait(0.1)
    patience = time.monotonic() + 60
    while "here" not in log.read_text():
        assert time.monotonic() < patience
        time.sleep(0.1)
    lost.kill()
    assert lost.wait(60) == -signal.SIGKILL and f"job {lost.job.job_id}: " in log.read_text()


@installed
@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("local", ["timeout_min"], "--job timeout_min: write KEY=VALUE"),
        ("local", ["slurm_partiton=gpu"], "--job: "),
        ("local", ["timeout_min=soon"], "--job: Parameter \"timeout_min\" expected type"),
        ("local", ["name=5"], "--job: Parameter \"name\" expected type"),
        ("local", ["tasks_per_node=2"], "--job tasks_per_node=2: a run is one task of one node"),
        ("local", ["slurm_nodes=2"], "--job slurm_nodes=2: a run is one task of one node"),
        ("slurm", [], "--cluster slurm: "),
    ],
)
def test_what_submitit_does_not_take_is_refused(
    tmp_path: Path, name: str, parameters: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no scheduler
    with pytest.raises(RecipeError, match=said) as refused:
        Cluster(name, tmp_path, parameters)
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_library_is_refused_before_anything_runs(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    refused = call(plan, "-o", tmp_path / "out", "--cluster", "local")
    assert refused.exit_code == 2 and "pip install 'muse-core[cluster]'" in refused.output
    assert "begins" not in refused.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--job", "timeout_min=5"], "name one, or leave it out"),
     (["--cluster", "local", "--gpus", "0"], "--job gpus_per_node=1")],
)
def test_options_that_do_not_go_together_are_refused(plan: Path, arguments: list[str], said: str) -> None:
    refused = call(plan, *arguments)
    assert refused.exit_code == 2 and said in refused.output


def test_a_job_that_was_told_to_stop_while_it_waited_begins_nothing(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    code = run_here(["false"], tmp_path / "log.txt", {}, Path(os.curdir), tmp_path / "stop")
    assert code == 128 + signal.SIGTERM and not (tmp_path / "log.txt").exists()
