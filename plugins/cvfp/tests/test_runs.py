"""Whole runs of the three stages: resume, contexts on disk, gradients, checks, generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from muse_cvfp.context_fixed import ContextFixed
from muse_cvfp.fixed_point import Iteration, Slices
from muse_cvfp.options import ContextFixedOptions, FixedPointOptions
from muse_cvfp.stream import Stream, sequential

import muse_core
from muse_core.cli import muse
from muse_core.cli.run import main
from muse_core.errors import StorageError
from muse_core.metrics.jsonl import read_rows
from muse_core.parallel.one import OneRank
from muse_core.recipe import check_table
from muse_core.storage.checkpoint import Checkpoints
from muse_core.testing import warm
from muse_core.training.objectives import NextToken
from muse_core.training.setup import Setup, set_up
from muse_core.training.trained import open_trained

RECIPE = """\
format = 1
name = "tiny"
seed = 5
data = { use = "files", paths = ["TEXT"], documents = "paragraph", tokenizer = "bytes", validation = 0.2, test = 0.1 }
stages = [
    { use = "token-embeddings", steps = 3 },
    { use = "fixed-point", tokens = 160, validation_tokens = 64, tokens_per_step = 40, iterations = 3 },
    { use = "context-fixed", tokens = 480 },
]
model = { use = "cvfp", width = 12, depth = 2 }

[train]
steps = 5
batch_size = 4
sequence_length = 24
warmup_steps = 1
log_every = 1
device = "cpu"
precision = "fp32"

[evaluate]
every = 1000
tokens = 96
final_tokens = 192

[checkpoint]
every = 3
keep = 20
"""

PROGRAM = """
import os, signal, sys
from muse_core.cli.run import main
from muse_core import fault_injection
commits = int(sys.argv.pop(1))
def count(value):
    global commits
    commits -= 1
    if not commits:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
with fault_injection.installed({"commit.after_retention": count} if commits else {}):
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    words = "one two three four five six seven eight nine ten red green blue big small far near old new".split()
    text = "\n\n".join(" ".join(rng.choice(words, 60)) for _ in range(80))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.toml").write_text(RECIPE.replace("TEXT", str(folder / "text.txt")))
    return folder


def start(folder: Path, *arguments: object, commits: int = 0) -> subprocess.CompletedProcess[str]:
    """``muse-run`` in a process of its own, killed after so many commits of this process unless 0."""
    command = [sys.executable, "-c", PROGRAM, str(commits), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MUSE_CACHE": str(folder / "cache")}
    return warm.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run without interruption."""
    ended = start(folder, folder / "tiny.toml", "--run-dir", folder / "whole")
    assert ended.returncode == 0, ended.stderr
    return folder / "whole"


def trace(run: Path) -> tuple[Any, ...]:
    """Hash of the state at the end, last loss of every step of every stage, and what was held out."""
    rows = read_rows(run / "metrics.jsonl")
    losses = {(row["stage"], row["step"]): row["loss"] for row in rows if row["event"] == "train"}
    summary = json.loads((run / "summary.json").read_text())
    newest = max(Checkpoints(run).generations(), key=lambda one: one.number)
    return newest.state_hash, losses, summary["held_out_loss"]


# Commits of a whole run: stage 0 at steps 0, 3; stage 1 at 0, 3, 6, 9, 12; stage 2 at 0, 3, 5.
@pytest.mark.parametrize("commits, stage, step", [(2, 0, 3), (4, 1, 3), (5, 1, 6), (7, 1, 12), (9, 2, 3)])
def test_a_run_killed_and_resumed_has_the_same_bits(
    folder: Path, whole: Path, commits: int, stage: int, step: int
) -> None:
    """Between stages (2, 7), in the middle of an iteration of four steps (4, 5), and under fixed contexts (9)."""
    run = folder / f"killed-{commits}"
    killed = start(folder, folder / "tiny.toml", "--run-dir", run, commits=commits)
    assert killed.returncode == -9, killed.stderr
    newest = Checkpoints(run).newest(quarantine=False)
    assert newest is not None and (newest[1].json["stage"], newest[1].step) == (stage, step)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ended = CliRunner().invoke(main, ["--resume", str(run)], env={"MUSE_CACHE": str(folder / "cache")})
    torch.set_num_threads(threads)
    assert ended.exit_code == 0, ended.output
    assert trace(run) == trace(whole)


def test_one_seed_gives_the_same_digits(folder: Path, whole: Path) -> None:
    ended = start(folder, folder / "tiny.toml", "--run-dir", folder / "again")
    assert ended.returncode == 0 and trace(folder / "again") == trace(whole)


@pytest.fixture
def setup(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("MUSE_CACHE", str(folder / "cache"))
    return open_trained(whole)[0]


def test_each_stage_trains_its_part_alone(folder: Path, whole: Path) -> None:
    table = tomllib.loads((folder / "tiny.toml").read_text())
    table["data"]["cache"] = str(folder / "cache")
    before = set_up(check_table(table).recipe, check_table(table).registry).model.state_dict()
    last: dict[int, dict[str, torch.Tensor]] = {-1: before}
    checkpoints = Checkpoints(whole)
    for generation in sorted(checkpoints.generations(), key=lambda one: one.number):
        _, snapshot = checkpoints.load(generation.number)
        last[snapshot.json["stage"]] = snapshot.model
    expected = {0: ("embedding.", "head."), 1: ("context_blocks.", "start"), 2: ("token_blocks.", "head.")}
    for stage in (1, 2):
        changed = {name for name, value in last[stage].items() if not torch.equal(value, last[stage - 1][name])}
        assert all(any(name.startswith(part) for name in changed) for part in expected[stage]), changed
        assert all(name.startswith(expected[stage]) for name in changed), changed


def test_no_gradient_reaches_contexts_or_the_context_network(setup: Setup, tmp_path: Path) -> None:
    setup.model.train().requires_grad_(True)
    stage = ContextFixed(ContextFixedOptions(tokens=480), setup)
    batch = stage.batches(tmp_path).batch(0)
    contexts = batch.extra["contexts"].requires_grad_()
    result = stage.objective(setup.model, None)(setup.model, batch, None)
    names = [name for name, _ in setup.model.named_parameters()]
    found = torch.autograd.grad(result.total, list(setup.model.parameters()), allow_unused=True)
    reached = {name for name, gradient in zip(names, found) if gradient is not None and gradient.any()}
    assert not any(name.startswith("context_blocks.") or name == "start" for name in reached)
    trained = {name for name in names if stage.trainable(name)}
    assert trained <= reached and reached - trained == {"embedding.weight"}
    assert not stage.trainable("embedding.weight")
    assert batch.extra["contexts"].is_leaf and contexts.grad is None


def test_fixed_contexts_are_those_of_streaming(setup: Setup, tmp_path: Path) -> None:
    """The objective on contexts from disk is the model's own cross-entropy, whole and token by token."""
    stage = ContextFixed(ContextFixedOptions(tokens=480), setup)
    data = stage.batches(tmp_path)
    batch = data.batch(2)
    with torch.no_grad():
        whole = setup.model(batch.inputs, None, batch.tokens).hidden[..., :12]
        assert (whole - batch.extra["contexts"]).abs().max() < 1e-6
        setup.model.double()
        batch = batch._replace(extra={"contexts": setup.model.contexts(setup.model.embedded(batch.inputs), None,
                                                                       batch.tokens)})
        fixed = stage.objective(setup.model, None)(setup.model, batch, None).total
        streaming = NextToken()(setup.model, batch, None).total
    assert abs(fixed - streaming) <= 1e-10 * abs(streaming)


def test_contexts_are_kept_by_digest_and_made_anew_when_damaged(setup: Setup, tmp_path: Path) -> None:
    stage = ContextFixed(ContextFixedOptions(tokens=480), setup)
    first = np.array(stage.batches(tmp_path).made())
    (file,) = (tmp_path / "contexts").glob("*.f32")
    written = file.stat().st_mtime_ns
    assert np.array_equal(stage.batches(tmp_path).made(), first) and file.stat().st_mtime_ns == written
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert np.array_equal(stage.batches(tmp_path).made(), first), "damaged contexts are used"
    with torch.no_grad():
        setup.model.start.add_(1.0)
    other = stage.batches(tmp_path).made()
    assert not np.array_equal(other, first)
    assert [path.name for path in (tmp_path / "contexts").glob("*.f32")] != [file.name]


def test_contexts_are_made_by_one_process_of_several(setup: Setup, tmp_path: Path) -> None:
    """Several that write one file at once end in half of one."""
    turns: list[str] = []

    class InTurn(OneRank):
        def first(self, action: Callable[[], Any]) -> Any:
            turns.append("before" if not (tmp_path / "contexts").exists() else "behind")
            return action()

    shared = attrs.evolve(setup, ranks=InTurn())
    first, second = (ContextFixed(ContextFixedOptions(tokens=480), shared).batches(tmp_path).made() for _ in range(2))
    assert turns == ["before", "behind"] and np.array_equal(first, second)


def test_contexts_beyond_the_quota_are_refused(folder: Path, tmp_path: Path) -> None:
    table = tomllib.loads((folder / "tiny.toml").read_text())
    table["data"]["cache"] = str(folder / "cache")
    table["checkpoint"]["quota"] = 1000
    checked = check_table(table)
    setup = set_up(checked.recipe, checked.registry)
    with pytest.raises(StorageError, match="contexts take 23,040 bytes, and checkpoint.quota allows 1,000 - lower"):
        ContextFixed(ContextFixedOptions(tokens=480), setup).batches(tmp_path).batch(0)


def test_iteration_one_repeats_iteration_zero(setup: Setup) -> None:
    """Before any update; so it says nothing about convergence."""
    text = setup.corpus.split("train")
    stream = Stream.of(text.tokens, text.starts, 80)
    objective = Iteration(stream, FixedPointOptions(tokens=80, tokens_per_step=80))
    result = objective(setup.model, Slices(stream, 80).batch(0), None)
    assert result.losses["fixed-point/mse"] < 1e-9 and objective.number == 2
    assert torch.equal(objective.tensors()["previous"], objective.tensors()["fresh"])
    assert (objective.tensors()["fresh"] - sequential(setup.model, stream)).abs().max() < 1e-6


def test_a_converged_stage_ends_early(folder: Path) -> None:
    """Where every difference is under the threshold: after iterations 2 and 3."""
    run = folder / "early"
    ended = start(folder, folder / "tiny.toml", "--run-dir", run, "--set", "stages[1].threshold=100.0", "--set",
                  "stages[1].patience=2", "--set", "stages[1].iterations=50")
    assert ended.returncode == 0, ended.stderr
    steps = [row["step"] for row in read_rows(run / "metrics.jsonl") if row["event"] == "train" and row["stage"] == 1]
    assert steps[-1] == 12
    assert not json.loads((run / "summary.json").read_text())["stopped_by_time"]


def test_an_objective_in_other_units_has_no_bits(whole: Path) -> None:
    rows = [row for row in read_rows(whole / "metrics.jsonl") if row["event"] == "train"]
    assert all(isinstance(row["bits_per_byte"], float) == (row["stage"] != 1) for row in rows)
    assert {"fixed-point/difference", "fixed-point/residual"} <= set(rows[-6])


def test_diagnose_prints_the_five_checks_as_numbers(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(folder / "cache"))
    told = CliRunner().invoke(muse, ["diagnose", str(whole), "--json"])
    assert told.exit_code == 0, told.output
    tables = json.loads(told.stdout)["checks"]
    assert [title[:2] for title in tables] == ["1.", "2.", "3.", "4.", "5."]
    ranks, same, fixed, restarts, rates = tables.values()
    assert all("/12 (" in value and value.endswith(" %)") for value in ranks.values()) and len(ranks) == 8
    assert all(isinstance(value, float) for value in same.values())
    assert fixed["validation: largest distance from token by token then"] < 1e-6
    assert restarts["from zero contexts: verdict"] in ("CONVERGED", "CONVERGING", "DIVERGING", "UNSTABLE")
    assert all("/160)" in value for key, value in rates.items() if key.startswith("training"))
    assert all("/64)" in value for key, value in rates.items() if key.startswith("validation:"))
    plain = CliRunner().invoke(muse, ["diagnose", str(whole)])
    assert "5. convergence rates" in plain.output and "/160)" in plain.output


def test_the_finished_run_speaks(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(folder / "cache"))
    said = CliRunner().invoke(muse, ["generate", str(whole), "--prompt", "The state", "--tokens", "5"])
    assert said.exit_code == 0 and said.output.startswith("The state")


def test_a_text_shorter_than_asked_for_has_as_many_iterations_and_a_row_of_each(folder: Path, tmp_path: Path) -> None:
    table = tomllib.loads((folder / "tiny.toml").read_text())
    (tmp_path / "short.txt").write_text((folder / "text.txt").read_text()[:3000])
    table["data"]["paths"] = [str(tmp_path / "short.txt")]
    table["stages"] = [{"use": "fixed-point", "tokens": 6400, "validation_tokens": 64, "iterations": 3}]
    run = muse_core.train(table, run_dir=tmp_path / "run", quiet=True)
    found = [row.get("fixed-point/iteration") for row in run.records()]
    assert found == [None, 1.0, 2.0, 3.0] and run.summary["planned_steps"] == 6, "two slices of 1,600"
