"""``muse-run`` as a person uses it: real processes, real signals; every wrong input a sentence with its exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from muse_core.cli.run import main
from muse_core.metrics.jsonl import read_rows
from muse_core.report import listing
from muse_core.testing import warm
from muse_core.training import loop
from muse_core.training.setup import Setup

RECIPE = """\
# A tiny run.
format = 1
name = "tiny"
seed = 7
data = { use = "state-of-the-union", tokenizer = "bytes" }

[model]
width = 32
depth = 2
block = ["attention", "feed-forward"]

[train]
steps = 6
batch_size = 2
sequence_length = 32
warmup_steps = 2
log_every = 1
device = "cpu"

[evaluate]
every = 3
tokens = 128
final_tokens = 256

[checkpoint]
every = 2
"""


@pytest.fixture(autouse=True)
def _cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    yield


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """The command in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return warm.Popen(
        [sys.executable, "-c", "from muse_core.cli.run import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def wait_for(path: Path, event: str, process: subprocess.Popen[str]) -> None:
    """Until a row of this event is in a records file."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.exists() and f'"event":"{event}"' in path.read_text().replace(" ", ""):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {event} in {path}")


def test_run_leaves_everything_that_tells_what_it_was(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, "--run-dir", tmp_path / "run")
    out, err = process.communicate()
    assert process.returncode == 0, err
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"source.toml", "recipe.toml", "muse.lock.toml", "metrics.jsonl", "events.jsonl", "checkpoints",
            "summary.json"} <= names
    assert (run / "source.toml").read_text() == RECIPE
    summary = json.loads((run / "summary.json").read_text())
    rows = list(read_rows(run / "metrics.jsonl"))
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["event"] == "eval"] == [3]
    (final,) = [row for row in rows if row["event"] == "final"]
    assert summary["held_out_bits_per_byte"] == final["bits_per_byte"]
    assert summary["held_out_interval"][0] < summary["held_out_bits_per_byte"] < summary["held_out_interval"][1]
    assert f"{summary['held_out_bits_per_byte']:.4f} bits/byte" in out
    assert "step 6/6" in out and "causality gate" in out and "\x1b[" not in out


def test_a_text_of_one_window_has_no_interval(recipe: Path, tmp_path: Path) -> None:
    """One window has no spread; an interval of its number to its number would look like certainty."""
    run = tmp_path / "run"
    options = ["--run-dir", str(run), "--set", "train.steps=1", "--set", "evaluate.final_tokens=1", "--report"]
    ended = CliRunner().invoke(main, [str(recipe), *options])
    assert ended.exit_code == 0, ended.output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["held_out_interval"] is None and summary["held_out_bits_per_byte"] > 0
    assert "(95 % over rows of one document, not seeds: none, the text is one window)" in " ".join(ended.output.split())
    assert "none, the text is one window" in (run / "report.html").read_text()
    (row,) = listing.runs(run)
    assert row["low"] is None and row["high"] is None


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_run_goes_on_later(recipe: Path, tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "my run"
    process = start(recipe, "--run-dir", run, "--set", "train.steps=100000", "--set", "checkpoint.every=100000")
    wait_for(run / "metrics.jsonl", "train", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    (advice,) = [line for line in err.splitlines() if "Go on with: " in line]
    assert shlex.split(advice.split("Go on with: ")[1]) == ["muse-run", "--resume", str(run)]
    done = [row["step"] for row in read_rows(run / "metrics.jsonl") if row["event"] == "train"][-1]
    process = start("--resume", run)
    wait_for(run / "events.jsonl", "resume", process)
    process.send_signal(number)
    process.communicate(timeout=60)
    (event,) = [row for row in read_rows(run / "events.jsonl") if row["event"] == "resume"]
    assert event["step"] == done


def test_locked_run_repeats_every_loss(recipe: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    assert invoke(recipe, "--run-dir", tmp_path / "first").exit_code == 0
    again = invoke("--locked", tmp_path / "first" / "muse.lock.toml", "--run-dir", tmp_path / "second")
    assert again.exit_code == 0, again.output

    def losses(name: str) -> list[float]:
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        return [row["loss"] for row in rows if row["event"] in ("train", "eval", "final")]

    assert losses("first") == losses("second") and len(losses("first")) == 8


def test_two_processes_compute_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    """Also when Python orders its sets in another way, and with and without deterministic = true."""
    processes = [
        start(recipe, "--run-dir", tmp_path / seed, "--set", f"deterministic={flag}", PYTHONHASHSEED=seed)
        for seed, flag in (("1", "false"), ("2", "true"))
    ]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    rows = [list(read_rows(tmp_path / seed / "metrics.jsonl")) for seed in ("1", "2")]
    first, second = ([row["loss"] for row in one if row["event"] in ("train", "eval", "final")] for one in rows)
    assert first == second and len(first) == 8


def test_what_is_not_deterministic_is_a_sentence(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 invoke: Callable[..., Result]) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set it. You can")

    monkeypatch.setattr("muse_core.training.loop.Loop.run", refuse)
    ended = invoke(recipe, "--run-dir", tmp_path / "run", "--set", "deterministic=true")
    assert ended.exit_code == 2 and "deterministic: cumsum_cuda_kernel does not have" in ended.output


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 9.80 GiB of which 1.88 MiB is "
        "free. Process 71 has 66.00 MiB memory in use. Including non-PyTorch memory, this process has 4.31 GiB in use."
    ),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"),
    MemoryError(),
], ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_in_a_step_is_a_sentence_and_the_run_goes_on_later(
    error: Exception, recipe: Path, tmp_path: Path, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(6))
    clip = loop.clip

    def full(*arguments: Any, **more: Any) -> Any:
        if next(steps) == 4:
            raise error
        return clip(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "clip", full)
        ended = invoke(recipe, "--run-dir", tmp_path / "run")
    assert ended.exit_code == 7, ended.output
    said = " ".join(ended.output.split())
    assert "does not fit into the memory" in said and "--resume" in said and "Traceback" not in said
    assert "Process 71" not in said and ("1.88 MiB is free.)" in said) == ("CUDA out" in str(error))
    assert invoke("--resume", tmp_path / "run").exit_code == 0


def test_memory_that_runs_out_in_the_final_evaluation_costs_that_alone(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is saved by then: the run goes on with the evaluation, and has the numbers of one that had room."""
    recipe.write_text(RECIPE.replace("[evaluate]\n", '[evaluate]\nsplit = "test"\n'))
    evaluate = Setup.evaluate

    def full(self: Setup, split: str, *given: Any, **more: Any) -> Any:
        if split == "test":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return evaluate(self, split, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Setup, "evaluate", full)
        ended = invoke(recipe, "--run-dir", tmp_path / "run")
    assert ended.exit_code == 7 and "--resume" in ended.output and "ALLOC_FAILED" in ended.output, ended.output
    assert not (tmp_path / "run/summary.json").exists()
    assert invoke("--resume", tmp_path / "run").exit_code == 0
    assert invoke(recipe, "--run-dir", tmp_path / "whole").exit_code == 0
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole"))
    assert first["held_out_loss"] == second["held_out_loss"]
    trained = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if row["event"] == "train"]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6] and {row["attempt"] for row in trained} == {1}


def test_drift_from_the_lock_is_named_and_refused(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    assert invoke(recipe, "--run-dir", tmp_path / "run").exit_code == 0
    lock = tmp_path / "run" / "muse.lock.toml"
    text = lock.read_text()
    lock.write_text(text.replace('torch = "', 'torch = "0.', 1))
    refused = invoke("--resume", tmp_path / "run")
    assert refused.exit_code == 2 and "environment.torch" in refused.output and "--allow-drift" in refused.output
    assert invoke("--resume", tmp_path / "run", "--allow-drift").exit_code == 0
    (event,) = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "drift"]
    assert "environment.torch" in event["differences"][0]


def test_dry_run_shows_what_would_be_built_and_writes_nothing(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    shown = invoke(recipe, "--dry-run", "--set", "model.block=['fast-weights', 'feed-forward']")
    assert shown.exit_code == 0, shown.output
    words = ("blocks.1.fast-weights", "total", "dynamics", "activations", "epochs", "fast_weights", "native", "MiB")
    for word in words:
        assert word in shown.output, word
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_says_what_of_the_text_is_left_out(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    """F10: 10 of 100 rows have their text in another column."""
    rows = [{"content" if number % 10 else "text": f"row {number} of some text. " * 9} for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f'data={{use="files",paths=["{tmp_path / "rows.jsonl"}"],text="content"}}'
    result = invoke(recipe, "--set", data, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "10 of 100 documents have no text" in result.output


def test_finished_run_resumed_ends_at_once(recipe: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    assert invoke(recipe, "--run-dir", tmp_path / "run").exit_code == 0
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert invoke("--resume", tmp_path / "run").exit_code == 0
    second = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert first["held_out_loss"] == second["held_out_loss"] and second["steps"] == 6


def wrong_inputs(folder: Path) -> dict[str, tuple[list[object], int, str]]:
    """Name → arguments, exit code, words of the message."""
    good = folder / "tiny.toml"
    (folder / "binary.toml").write_bytes(b"\x7fELF\x00\xff\xfe")
    (folder / "other.toml").write_text(RECIPE.replace("seed = 7", "seed = 8"))
    (folder / "file").write_text("in the way")
    return {
        "nothing": ([], 2, "give one of RECIPE"),
        "two things": ([good, "--resume", folder], 2, "not RECIPE and --resume"),
        "missing recipe": ([folder / "none.toml"], 2, "no such file"),
        "directory": ([folder], 2, "a directory"),
        "binary": ([folder / "binary.toml"], 2, "UTF-8"),
        "unknown key": ([good, "--set", "train.stesp=3"], 2, "did you mean 'steps'"),
        "wrong type": ([good, "--set", "train.steps=\"six\""], 2, "whole number"),
        "out of range": ([good, "--set", "model.dropout=1.5"], 2, "model.dropout"),
        "unknown component": ([good, "--set", "model.block=['atention']"], 2, "did you mean 'attention'"),
        "missing signal": ([good, "--set", "model.block=[{use='fast-weights', decay='signal'}]"], 2, "signal 'decay'"),
        "impossible size": ([good, "--set", "model.depth=1024", "--set", "model.width=4096"], 2, "GiB"),
        "sizes that do not divide": ([good, "--set", "model.block=[{use='attention', heads=5}]"], 2, "heads"),
        "period never reached": (
            [good, "--set", "model.block=[{use='fast-weights', period=32, filters=['snr']}]"], 2, "period"),
        "unknown device": ([good, "--device", "tpu"], 2, "'tpu' is no device: give auto, cpu, cuda or cuda:<index>"),
        "run directory is a file": ([good, "--run-dir", folder / "file"], 3, "file"),
        "unwritable run directory": ([good, "--run-dir", "/proc/run"], 3, "/proc/run"),
        "resume without a run": (["--resume", folder], 3, "holds no run"),
        "init from nowhere": ([good, "--set", "init.from='nowhere'", "--run-dir", folder / "r1"], 3, "nowhere"),
        "initializer without match": (
            [good, "--set", "initializers=[{use='zeta', match='no.*'}]"], 2, "matches no parameter"),
        "missing text": ([good, "--set", "data={use='files', paths=['none.txt']}"], 3, "none.txt"),
    }


@pytest.mark.parametrize("name", sorted(wrong_inputs(Path(tempfile.mkdtemp()))))
def test_wrong_input_is_a_sentence(name: str, recipe: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    arguments, code, words = wrong_inputs(tmp_path)[name]
    if not any(argument == "--run-dir" for argument in arguments) and name not in ("nothing", "resume without a run"):
        arguments = [*arguments, *([] if "--resume" in arguments else ["--run-dir", tmp_path / "unused"])]
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.output and "Traceback" not in result.output
    assert not (tmp_path / "unused" / "recipe.toml").exists()


def test_directory_of_another_recipe_is_refused_and_left_alone(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    run = tmp_path / "run"
    assert invoke(recipe, "--run-dir", run).exit_code == 0
    before = (run / "recipe.toml").read_bytes()
    refused = invoke(recipe, "--run-dir", run, "--set", "seed=9")
    assert refused.exit_code == 3 and "another recipe" in refused.output
    assert (run / "recipe.toml").read_bytes() == before


def test_damaged_encoded_text_is_made_anew_and_said(
    recipe: Path, tmp_path: Path, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(tmp_path / "own-cache"))
    assert invoke(recipe, "--run-dir", tmp_path / "first").exit_code == 0
    largest = max((tmp_path / "own-cache").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[1000] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(data)
    again = invoke(recipe, "--run-dir", tmp_path / "second")
    assert again.exit_code == 0 and "made anew" in again.output
