"""``muse-run`` ends with its report, and never loses a run by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.errors import Halted
from muse_core.report import drawing
from muse_core.training.run import Run

RECIPE = """\
format = 2
name = "tiny"
data = { use = "state-of-the-union", tokenizer = "bytes" }
[model]
width = 16
depth = 2
block = ["attention", "feed-forward"]
[train]
steps = 3
batch_size = 2
sequence_length = 32
log_every = 1
device = "cpu"
[evaluate]
tokens = 64
final_tokens = 128
"""
PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def _cached(cache, monkeypatch):
    monkeypatch.setenv("MUSE_CACHE", str(cache))


def begin(folder: Path, *arguments: str):
    (folder / "tiny.toml").write_text(RECIPE)
    command = [str(folder / "tiny.toml"), "--run-dir", str(folder / "run"), *arguments]
    return CliRunner().invoke(main, command, env={"MUSE_REPORT": None})


def test_a_run_ends_with_page_pictures_and_sample_and_they_are_made_anew_with_times(tmp_path):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    done = begin(tmp_path)
    run = tmp_path / "run"
    assert done.exit_code == 0 and f"report: {run / 'report.html'}" in done.output
    names = {path.stem for path in (run / "pictures").iterdir()}
    assert names == {"bits-per-byte", "loss", "gradient-norm", "learning-rate", "throughput", "parameters"}
    assert all((run / "pictures" / f"{name}.png").read_bytes().startswith(PNG) for name in names)
    page = (run / "report.html").read_text()
    made = json.loads((run / "report.json").read_text())
    assert "<dd>done</dd>" in page and made["sample"]["prompt"] in page
    counted = sum(row["parameters"] for row in made["parameters"])
    assert counted == json.loads((run / "summary.json").read_text())["parameters"]
    again = CliRunner().invoke(muse, ["report", str(run), "--cost"])
    assert again.exit_code == 0, again.output
    after = json.loads((run / "report.json").read_text())
    assert after["sample"] == made["sample"] and (run / "pictures" / "time.png").is_file()
    times = {row["component"]: row["seconds"] for row in after["times"]["rows"]}
    assert times.keys() == {"attention", "feed-forward", "outside layers"} and all(v > 0 for v in times.values())


def test_a_report_that_fails_is_said_and_the_run_is_done(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("no room for a script")

    monkeypatch.setattr("muse_core.report.writing.script", broken)
    done = begin(tmp_path)
    run = tmp_path / "run"
    assert done.exit_code == 0
    assert f"no report was written: RuntimeError: no room for a script; make it later by muse report {run}" in \
        done.output.replace("\n", " ")
    assert (run / "summary.json").is_file() and not (run / "report.html").exists()
    assert not (run / "pictures").exists()


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch, made_run):
    drawing.script.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    run = made_run("one")
    done = CliRunner().invoke(muse, ["report", str(run)])
    assert done.exit_code == 2 and "pip install 'muse-core[report]'" in done.output
    assert not (run / "report.html").exists() and done.output.count("\n") == 1


def test_no_report_is_drawn_where_none_is_wanted(tmp_path):
    assert begin(tmp_path, "--no-report").exit_code == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_that_halts_after_a_checkpoint_is_drawn_and_one_that_the_gate_refuses_leaves_nothing(
    tmp_path, monkeypatch
):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")

    def halt(*_):
        raise Halted("the trial halts here")

    for where, name, kept in (("_gate", "refused", False), ("_final_evaluation", "halted", True)):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(Run, where, halt)
            done = begin(tmp_path / name)
        assert done.exit_code == 4 and "the trial halts here" in done.output
        assert (tmp_path / name / "run" / "report.html").exists() == kept == (tmp_path / name / "run").exists()


def interrupted(folder: Path, then: int | None = None) -> tuple[int, str]:
    """A run of many steps in its own process, interrupted once it has done some, and a second signal once it draws;
    its exit code and what it said."""
    (folder / "tiny.toml").write_text(RECIPE.replace("steps = 3", "steps = 100000"))
    environment = {key: value for key, value in os.environ.items() if key != "MUSE_REPORT"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "muse_core.cli.run", "tiny.toml", "--run-dir", "run"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step ") and not any(one.startswith("step ") for one in said[:-1]):
                process.send_signal(signal.SIGINT)
            if then is not None and line.startswith("drawing the report"):
                process.send_signal(then)
                then = None  # one: a line that a signal interrupts may be printed again
        process.wait(timeout=100)
    return process.returncode, "".join(said)


def test_an_interrupted_run_is_drawn(tmp_path):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    code, said = interrupted(tmp_path)
    assert code == 130, said
    assert f"report: {Path('run') / 'report.html'}" in said and "Go on with: muse-run --resume" in said
    assert "interrupted" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "pictures" / "loss.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("then", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_the_report_out_and_the_exit_code_is_the_firsts(tmp_path, then):
    code, said = interrupted(tmp_path, then)
    assert code == 130 and "Go on with: muse-run --resume" in said, said
    assert "no report was written: another signal came; make it later by muse report" in said
    assert not (tmp_path / "run" / "report.html").exists()
