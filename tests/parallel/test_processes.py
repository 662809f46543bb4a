"""Runs of several gloo processes: equal losses, one verdict, one checkpoint, one ending."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from muse_core.metrics.jsonl import read_rows
from muse_core.testing import warm

PROGRAM = Path(__file__).with_name("scenarios.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of pytest-xdist: several times these processes at once would starve each other."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """Scenario → what became of its starts."""
    kept = folder / "found.json"
    with FileLock(folder / "found.lock"):
        if not kept.exists():
            done = warm.run(
                [sys.executable, str(PROGRAM), str(folder)], capture_output=True, text=True, env=ENVIRONMENT,
                timeout=900,
            )
            assert done.returncode == 0, done.stderr
            kept.write_text(done.stdout.splitlines()[-1])
    return json.loads(kept.read_text())


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    name = "metrics.jsonl" if event in ("train", "eval", "final") else "events.jsonl"
    return [row for row in read_rows(run / name) if row["event"] == event]


def codes(found: dict[str, Any], name: str) -> list[list[int]]:
    return [start["codes"] for start in found[name]]


def test_ragged_and_masked_targets_of_experts_give_the_losses_of_one_process(
    found: dict[str, Any], folder: Path
) -> None:
    """Every rank has other numbers of targets, losses of the layers' own, and parameters that no token uses."""
    assert codes(found, "whole") == [[0]] and codes(found, "copies") == [[0, 0]]
    one, two = (rows(folder / name, "train") for name in ("whole", "copies"))
    assert [row["tokens"] if "tokens" in row else row["step"] for row in one] == [
        row["tokens"] if "tokens" in row else row["step"] for row in two
    ]
    of_ranks = {key for key in two[0] if key.startswith("ranks/")}
    assert len(one) == 8 and set(one[0]) == set(two[0]) - of_ranks
    assert of_ranks == {"ranks/slowest", "ranks/forward_seconds_max", "ranks/forward_seconds_min"}
    for mine, theirs in zip(one, two, strict=True):
        numbers = {key: value for key, value in mine.items() if isinstance(value, float) and "second" not in key}
        numbers.pop("ppl_delta", None)  # a small difference of large numbers
        # Muon's products of bf16 and the choice of experts enlarge the rounding.
        assert numbers == pytest.approx({key: theirs[key] for key in numbers}, rel=3e-3, abs=1e-5)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ends = [rows(folder / name, "final")[0]["loss"] for name in ("whole", "copies")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_damage_on_one_rank_is_the_verdict_of_all(found: dict[str, Any], folder: Path) -> None:
    start = found["nan"][0]
    run = folder / "nan"
    assert [row["step"] for row in rows(run, "skip")] == [4, 5] and len(rows(run, "rollback")) == 1
    assert rows(run, "incident")[0]["data"] == [4, 7]
    assert start["codes"] == [4, 4], "halted by the held-out loss"
    assert "halted after the last step" in start["said"][0] and not start["said"][1]


def test_the_canary_of_rank_0_is_that_of_all(found: dict[str, Any], folder: Path) -> None:
    """Rank 1's own is 5 nats too high before the damage, which alone must bring the rollback."""
    assert codes(found, "canary") == [[0, 0]] and not found["canary"][0]["said"][1]
    (rollback,) = rows(folder / "canary", "rollback")
    assert rollback["step"] == 30 and "the canary's loss" in rollback["reason"]


def test_a_signal_to_one_rank_saves_and_ends_all_and_any_number_of_ranks_goes_on(
    found: dict[str, Any], folder: Path
) -> None:
    assert codes(found, "signal") == [[143, 143], [0]]
    assert [start["said"][0].count("everything is saved") for start in found["signal"]] == [1, 0]
    assert not any(said for start in found["signal"] for said in start["said"][1:])
    run = folder / "signal"
    resumed = rows(run, "resume")
    assert len(resumed) == 1 and resumed[0]["step"] < 8
    straight = [row["loss"] for row in rows(folder / "one", "train")]
    assert [row["loss"] for row in rows(run, "train")] == pytest.approx(straight, rel=1e-5)


def test_divided_weights_train_as_whole_ones_and_go_on_with_any_number_of_ranks(
    found: dict[str, Any], folder: Path
) -> None:
    """FSDP2 with Muon, routed experts and ragged targets: 2 → 1 → 4 ranks; each start compares its state, gathered from
    all ranks, with the hash in the manifest before it goes on."""
    assert codes(found, "whole") == [[0]] and codes(found, "divided") == [[143, 143], [143], [0, 0, 0, 0]]
    assert not any(said for start in found["divided"] for said in start["said"][1:])
    run = folder / "divided"
    assert [row["step"] for row in rows(run, "resume")] == [4, 6]
    whole, divided = rows(folder / "whole", "train"), rows(run, "train")
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [row[name] for row in divided] == pytest.approx([row[name] for row in whole], rel=3e-3), name
    losses = [rows(folder / name, "final")[0]["loss"] for name in ("whole", "divided")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    manifests = [json.loads(path.read_text()) for path in sorted((run / "checkpoints").glob("*/MANIFEST.json"))]
    start = json.loads((folder / "whole" / "checkpoints" / "gen-00000001" / "MANIFEST.json").read_text())
    assert manifests[0]["states"] == start["states"] and "model-00003.safetensors" in manifests[-1]["files"]


def test_divided_weights_train_in_compiled_blocks_as_whole_ones_in_plain_ones(
    found: dict[str, Any], folder: Path
) -> None:
    """Three equal blocks of one graph; the other is that of the check that torch.compile works."""
    assert codes(found, "compiled") == [[0], [0, 0]], found["compiled"]
    assert all(said.splitlines()[-1] == "graphs: 2" for said in found["compiled"][1]["said"])
    whole, divided = rows(folder / "deep", "train"), rows(folder / "compiled", "train")
    assert [row["loss"] for row in divided] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
    assert len(divided) == 8
    compared(folder / "compiled")


def compared(run: Path) -> None:
    """Its compiled gradients were those of the plain model."""
    row = next(row for row in reversed(rows(run, "gate")) if row["gate"] == "compiled gradients")
    assert row["passed"] is True
    assert row["largest"] <= row["allowed"] and row["parameters"] > row["unknown"] == 0


def test_compiled_copies_have_the_bits_of_those_that_were_not_compared_with_the_plain_model(
    found: dict[str, Any], folder: Path
) -> None:
    """With dropout, and random numbers of each rank's own. A gradient that one rank loses ends all."""
    assert codes(found, "compiled copies") == [[0, 0], [0, 0], [4, 4]], found["compiled copies"]
    compared(folder / "checked")
    checked, unchecked = (
        [(row["loss"], row["gradient_norm"]) for row in rows(folder / name, "train")]
        for name in ("checked", "unchecked")
    )
    assert checked == unchecked and len(checked) == 3
    assert not [row for row in rows(folder / "unchecked", "gate") if row["gate"] != "causality"]
    said = found["compiled copies"][2]["said"]
    assert "nearest to it is blocks.0.norms.feed-forward.weight" in " ".join(said[0].split())
    assert not rows(folder / "lost", "train")


def test_divided_copies_train_as_one_process_and_go_on_as_one_copy(found: dict[str, Any], folder: Path) -> None:
    """Hybrid sharding: 4 ranks hold two copies of two halves, then 2 ranks one copy."""
    assert codes(found, "hybrid") == [[143] * 4, [0, 0]], json.dumps(found["hybrid"])[-3500:]
    run = folder / "hybrid"
    assert [row["step"] for row in rows(run, "resume")] == [4]
    whole, divided = rows(folder / "whole", "train"), rows(run, "train")
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in divided] == pytest.approx([row[name] for row in whole], rel=3e-3), name
    assert len(divided) == 8


def test_a_divided_model_is_built_block_by_block_with_the_values_of_a_whole_one(found: dict[str, Any]) -> None:
    assert codes(found, "blocks") == [[0, 0]]
    for said in found["blocks"][0]["said"]:
        equal, most = json.loads(said.splitlines()[-1])
        # Half of it, with a block and the embedding whole.
        assert equal and 0.5 <= most < 0.7


def test_a_leak_of_a_divided_model_is_refused_by_every_check(found: dict[str, Any], folder: Path) -> None:
    for start, how in zip(found["leaks"], ("float64", "own precision"), strict=True):
        assert set(start["codes"]) == {4}, start
        assert "feed-forward" in start["said"][0] and "nothing was trained" in start["said"][0]
        assert not start["said"][1], how
    assert not (folder / "bad").exists()


def test_tokens_that_are_divided_give_the_gradients_of_one_process_and_train(
    found: dict[str, Any], folder: Path
) -> None:
    """Resolvent, both rules of fast weights, short convolutions; ragged rows with documents that start within."""
    assert codes(found, "exact") == [[0, 0, 0]]
    assert float(found["exact"][0]["said"][0]) < 1e-11
    assert codes(found, "mixed-1") == [[0]] and codes(found, "mixed-2") == [[0, 0]]
    whole, divided = (rows(folder / name, "train") for name in ("mixed-1", "mixed-2"))
    losses = [[row["loss"] for row in train[:5]] for train in (whole, divided)]  # later ones enlarge the rounding
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert codes(found, "attention") == [[2, 2]]
    assert "model.block[0]: attention reads whole rows of tokens" in found["attention"][0]["said"][0]


def test_sums_behind_the_passes_give_the_losses_of_one_process(found: dict[str, Any], folder: Path) -> None:
    """As recorded steps have them; ragged rows with masked targets. A gradient that one rank alone has ends all."""
    assert codes(found, "summed") == [[0], [0, 0]] and not found["summed"][1]["said"][1]
    both = [rows(folder / name, "train") for name in ("alone", "summed")]
    losses, norms = ([[row[name] for row in train] for train in both] for name in ("loss", "gradient_norm"))
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=3e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    first, later = found["odd"]
    assert first["codes"] == [2, 2] and "rank 1 does not have rank 0's parameters with gradients" in first["said"][0]
    assert len(set(later["codes"])) == 1 and later["codes"][0] not in (0, None)
    assert "has a gradient in some steps alone" in later["said"][1]


def test_checkpoints_are_written_by_all_ranks_and_equal_at_the_start(found: dict[str, Any], folder: Path) -> None:
    manifests = {
        name: [json.loads(path.read_text()) for path in sorted((folder / name / "checkpoints").glob("*/MANIFEST.json"))]
        for name in ("one", "signal")
    }
    assert manifests["one"][0]["states"] == manifests["signal"][0]["states"], "whatever the number of ranks"
    assert "model-00001.safetensors" in manifests["signal"][0]["files"]
    assert "model-00001.safetensors" not in manifests["signal"][-1]["files"]


def test_a_disk_that_fails_one_rank_fails_all_and_leaves_the_checkpoint_before(
    found: dict[str, Any], folder: Path
) -> None:
    start = found["full disk"][0]
    assert start["codes"] == [3, 3] and "No space left on device" in start["said"][1]
    assert "No space left" not in start["said"][0], "it is said once"
    names = sorted(path.name for path in (folder / "disk" / "checkpoints").iterdir())
    assert names == ["gen-00000001"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("other recipe", "rank 1 does not have rank 0's recipe"), ("three", "4 rows cannot be divided among 3")],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    found: dict[str, Any], folder: Path, name: str, said: str
) -> None:
    start = found[name][0]
    assert set(start["codes"]) == {2} and said in start["said"][0] and len(start["said"][0].splitlines()) == 1
    assert not any(start["said"][1:]) and not (folder / "bad").exists()


def test_the_command_starts_its_processes_and_ends_with_their_code(found: dict[str, Any], folder: Path) -> None:
    command = [sys.executable, "-m", "muse_core.cli.run", str(folder / "dense.toml"), "--run-dir"]
    more = ["--no-report", "--processes", "2", "--set", "train.steps=2"]
    done = warm.run(
        [*command, str(folder / "started"), *more], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"processes +2: data 2", done.stdout) and done.stdout.count("step 2/2") == 1 and not done.stderr
    losses = [row["loss"] for row in rows(folder / "started", "train")]
    assert losses[0] == pytest.approx(rows(folder / "one", "train")[0]["loss"], rel=1e-6)
    # Refused by the command itself, before a process is started.
    done = warm.run(
        [*command, str(folder / "other"), *more, "--processes", "3"], capture_output=True, text=True, env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 2 and "cannot be divided among 3" in done.stderr
