"""``muse compare`` as a person uses it: real runs in real processes, on a tiny plan."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import muse_core
from muse_core.cli.compare import LEFT, _progress, compare
from muse_core.comparison import slots as slots_module
from muse_core.comparison.cells import reported_cells
from muse_core.comparison.parameters import Evaluated, _other_texts
from muse_core.comparison.plan import read_plan
from muse_core.comparison.ratio import Measured
from muse_core.comparison.runs import Comparison
from muse_core.comparison.slots import Slots
from muse_core.testing import warm
from muse_core.training.stop import Stop
from tests.commands import called
from tests.comparison.conftest import tiny_recipe

PLAN = """\
name = "two"
baseline = "rotary"
seeds = [1]
split = "validation"
watch = ["gradient_norm"]
arms = [
    { name = "rotary", recipe = "r.toml" },
    { name = "plain", recipe = "r.toml", set = ["model.block[0].rotary=false"] },
]
"""
KEYS_AND_VALUES = 32 * (16 + 16 + 1)
"""Of 32 tokens, with the document of each: the state of one layer of attention."""
LARGER = PLAN.replace('"model.block[0].rotary=false"', '"model.block[1].multiple=8.0"')


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "r.toml").write_text(tiny_recipe(4))
    (tmp_path / "p.toml").write_text(PLAN)
    return tmp_path / "p.toml"


call = partial(called, compare)


def test_a_plan_runs_once_is_reported_and_goes_on_where_it_was_interrupted(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = call(plan, "-o", out, "--slots", 2)
    assert first.exit_code == 0, first.output
    assert "s (2 of 2 runs)" in first.output
    report, told = json.loads((out / "report.json").read_text()), (out / "report.md").read_text()
    rotary, plain = report["arms"]
    assert rotary["mean"] != plain["mean"] and rotary["tokens"] == 4 * 2 * 32
    assert rotary["state"] == plain["state"] == KEYS_AND_VALUES and f"| {KEYS_AND_VALUES:,} |" in told
    found = plain["against_baseline"]
    assert found["value"] == pytest.approx(plain["mean"] / rotary["mean"])
    assert found["low"] < found["value"] < found["high"]
    first, last, held_out = report["watched"]["plain"]["gradient_norm"]
    assert first != last and held_out is None
    assert not report["left"] and f"{found['value']:.4f}" in told
    kept = json.loads((out / "plain/validation-seed-1/held_out.json").read_text())
    assert kept["documents"].keys() == {str(number) for number in kept["document"]}
    assert {one["source"] for one in kept["documents"].values()} == {"state-of-the-union"}
    assert plain["by_source"] == {} and all(one["name"] for one in kept["documents"].values())

    summaries = sorted(out.glob("*/*/summary.json"))
    before = [path.stat().st_mtime_ns for path in summaries]
    value = json.loads(summaries[0].read_text())["held_out_bits_per_byte"]
    summaries[0].unlink()
    again = call(plan, "-o", out)
    assert again.exit_code == 0 and "goes on" in again.output and "begins" not in again.output, again.output
    assert json.loads(summaries[0].read_text())["held_out_bits_per_byte"] == value
    assert summaries[1].stat().st_mtime_ns == before[1], "a run that was done was repeated"

    summaries[0].unlink()
    run, other = summaries[0].parent, "0" * 64
    lock = (run / "muse.lock.toml").read_text()
    changed = re.sub(r'(?m)^(data = )"[0-9a-f]{64}"', rf'\1"{other}"', lock)
    assert changed != lock
    (run / "muse.lock.toml").write_text(changed)
    drifted = call(plan, "-o", out)
    said = (run / "failed.txt").read_text()
    assert drifted.exit_code == 6 and "--allow-drift" not in drifted.output, drifted.output
    assert "digests.data: the lock says '000" in said and f"remove {run} to begin it anew" in said
    shutil.rmtree(run)
    assert call(plan, "-o", out).exit_code == 0 and summaries[0].is_file()


def test_variants_of_other_sizes_are_refused_before_anything_runs(plan: Path, tmp_path: Path) -> None:
    plan.write_text(LARGER)
    refused = call(plan, "-o", tmp_path / "out", "--dry-run")
    assert refused.exit_code == 2 and "variant 'plain' has" in refused.output and not (tmp_path / "out").exists()
    plan.write_text('parameters = "warn"\n' + LARGER)
    warned = call(plan, "-o", tmp_path / "out", "--dry-run")
    assert warned.exit_code == 0 and "warning: variant 'plain'" in warned.output
    assert "say parameters" in refused.output and "say parameters" not in warned.output
    assert "plain/validation-seed-1: to begin" in warned.output


def test_variants_on_other_text_are_refused_before_anything_runs(plan: Path, tmp_path: Path) -> None:
    others = {
        "evaluate.final_tokens=1024": "would be evaluated on another stretch of text than the baseline 'rotary' (1,02",
        "evaluate.lengths=[2]": "would be evaluated on rows of 64 tokens, and the baseline 'rotary' on rows of 32",
    }
    arms = (f'    {{ name = "v{i}", recipe = "r.toml", set = ["{own}"] }},\n' for i, own in enumerate(others))
    plan.write_text(PLAN.removesuffix("]\n") + "".join(arms) + "]\n")
    refused = call(plan, "-o", tmp_path / "out", "--dry-run")
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    for number, said in enumerate(others.values()):
        assert f"variant 'v{number}' {said}" in refused.output, refused.output


def test_variants_on_other_data_are_refused_where_their_tokens_are_the_same(plan: Path) -> None:
    rows = Measured(document=np.zeros(1, int), above=np.zeros(0), below=np.ones(1))
    base = Evaluated("bytes", "one text", 32, rows, is_text=True)
    read = read_plan(plan).plan
    (said,) = _other_texts(read, {("rotary", None): base, ("plain", None): base._replace(data="another")})
    assert said.startswith("variant 'plain' reads other text than the baseline 'rotary'")
    other_tokens = base._replace(data="the same text in other tokens", tokenizer="bpe")
    assert _other_texts(read, {("rotary", None): base, ("plain", None): other_tokens}) == []


def test_variants_on_other_tasks_are_refused_whatever_their_tokens(plan: Path) -> None:
    """As many labels count in both, and none stands for bytes that could be the same."""
    rows = Measured(document=np.zeros(1, int), above=np.zeros(0), below=np.ones(1))
    base = Evaluated("64 numbers", "a task", 32, rows, is_text=False)
    harder = base._replace(data="another", tokenizer="128 numbers")
    text = harder._replace(is_text=True)
    read = read_plan(plan).plan
    for other, than, said in (
        (harder, base, "has another task than the baseline 'rotary'"),
        (text, base, "has text and the baseline 'rotary' a task"),
        (base, text, "has a task and the baseline 'rotary' text"),
    ):
        assert _other_texts(read, {("rotary", None): than, ("plain", None): other}) == [
            f"variant 'plain' {said} - give all one [data]"
        ]


@pytest.mark.parametrize(("key", "values", "other", "said"), [
    ("evaluate.final_tokens", "[1024, 2048]", 1024, "would be evaluated on another stretch of text"),
    ("train.sequence_length", "[16, 32]", 16, "would be evaluated on rows of 16 tokens"),
    ("data.split_seed", "[0, 1]", 1, "reads other text"),
])
def test_values_that_change_the_text_of_the_evaluation_are_refused(
    plan: Path, tmp_path: Path, key: str, values: str, other: int, said: str
) -> None:
    """Their figures are of different texts: the best of them would be the value with the easiest text."""
    plan.write_text(PLAN + f"tune = {{ key = {json.dumps(key)}, values = {values} }}\n")
    refused = call(plan, "-o", tmp_path / "out", "--dry-run")
    assert refused.exit_code == 2 and not (tmp_path / "out").exists()
    assert refused.output.count(said) == 2, "of each variant the one value\n" + refused.output
    assert f"variant 'plain' with {key}={other} {said}" in refused.output


def test_runs_on_other_text_are_reported_without_a_ratio(plan: Path, tmp_path: Path) -> None:
    """As in a folder whose runs were made before the text was compared."""
    read, out = read_plan(plan), tmp_path / "out"
    rows = {"rotary": [10.0, 20.0], "plain": [10.0, 10.0]}
    for cell in reported_cells(read, out, {"rotary": None, "plain": None}):
        cell.path.mkdir(parents=True)
        size, nats = rows[cell.variant.name], [9.0, 8.0]
        (cell.path / "held_out.json").write_text(json.dumps({"document": [0, 1], "nats": nats, "bytes": size}))
        (cell.path / "summary.json").write_text(json.dumps({
            "parameters": 9, "train_tokens": 1, "train_seconds": 1.0, "tokens_per_second": 1.0, "device": "cpu",
            "held_out_bits_per_byte": sum(nats) / math.log(2) / sum(size), "stopped_by_time": False,
        }))
    done = call(plan, "-o", out, "--report")
    assert done.exit_code == 0, done.output
    assert "plain was evaluated on another stretch of text than rotary (20 of 2 documents and 30" in done.output
    assert "against_baseline" not in json.loads((out / "report.json").read_text())["arms"][1]


def test_a_report_of_text_from_several_sources_has_the_ratio_for_each(plan: Path, tmp_path: Path) -> None:
    read, out = read_plan(plan), tmp_path / "out"
    documents = {number: {"name": f"{number}", "source": ("code", "prose")[number % 2]} for number in range(4)}
    for cell in reported_cells(read, out, {"rotary": None, "plain": None}):
        cell.path.mkdir(parents=True)
        nats = [8.0, 10.0, 8.0, 10.0] if cell.variant.name == "plain" else [10.0] * 4
        rows = {"document": [0, 1, 2, 3], "nats": nats, "bytes": [10.0] * 4, "documents": documents}
        rows["by_document"] = True
        (cell.path / "held_out.json").write_text(json.dumps(rows))
        (cell.path / "summary.json").write_text(json.dumps({
            "parameters": 9, "train_tokens": 1, "train_seconds": 1.0, "tokens_per_second": 1.0, "device": "cpu",
            "held_out_bits_per_byte": sum(nats) / math.log(2) / 40, "stopped_by_time": False,
        }))
    done = call(plan, "-o", out, "--report")
    assert done.exit_code == 0, done.output
    assert "weighs for code as 2, prose as 2 documents of equal size" in done.output
    assert "| variant | code | prose |" in done.output
    assert "| plain | 0.8000, 0.8000 to 0.8000 | 1.0000, 1.0000 to 1.0000 |" in done.output
    found = json.loads((out / "report.json").read_text())["arms"][1]["by_source"]
    assert {name: one["value"] for name, one in found.items()} == pytest.approx({"code": 0.8, "prose": 1.0})


def test_experts_that_a_token_does_not_use_are_left_out_where_the_plan_says_so(plan: Path, tmp_path: Path) -> None:
    experts = "model.block[1]={ use = 'experts', router = 'mlp', multiple = 1.5 }"
    plan.write_text(PLAN.replace('"model.block[0].rotary=false"', f'"{experts}"'))
    every = call(plan, "-o", tmp_path / "out", "--dry-run", "--set", "model.width=32")
    assert every.exit_code == 2 and "variant 'plain' has" in every.output
    plan.write_text('count = "active"\nparameter_tolerance = 0.15\n' + plan.read_text())
    active = call(plan, "-o", tmp_path / "out", "--dry-run", "--set", "model.width=32")
    assert active.exit_code == 0 and "plain: " in active.output and "active parameters" in active.output, active.output


def test_a_run_that_fails_is_said_to_and_not_repeated(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN.replace('"plain", recipe = "r.toml"', '"plain", recipe = "none.toml"'))
    read, said = read_plan(plan), []
    plain = [cell for cell in reported_cells(read, tmp_path / "out", {"plain": None}) if cell.variant.name == "plain"]
    Slots(count=1, gpus=[], say=said.append).work(lambda: [c for c in plain if not c.settled()], lambda: None)
    assert "exit code 2" in (plain[0].failure() or "") and "no such file" in (plain[0].failure() or "")
    assert len(said) == 2 and "failed" in said[1]


class Waiting:
    """A process that prints a line and ends when it is asked a third time."""

    def __init__(self, log: Path):
        log.write_text("step 40/300  loss 2.4\n")
        self.asked, self.returncode = 0, 2

    def poll(self) -> int | None:
        self.asked += 1
        return self.returncode if self.asked > 2 else None


def test_a_long_run_says_now_and_then_how_far_it_is(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "PULSE", 0.0)
    monkeypatch.setattr(slots_module, "PAUSE", 0.01)
    (cell,) = reported_cells(read_plan(plan), tmp_path / "out", {"rotary": None})
    said: list[str] = []
    slots = Slots(count=1, gpus=[], say=said.append, launch=lambda command, log, environment: Waiting(log))
    slots.work(lambda: [] if cell.settled() else [cell], lambda: None)
    assert said[1:3] == [f"{cell.name}: step 40/300  loss 2.4"] * 2 and "failed" in said[3]


def test_runs_that_the_sweep_decides_are_counted_too(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN + '[tune]\nkey = "train.learning_rate"\nvalues = [1e-3, 2e-3, 3e-3]\n')
    comparison = Comparison(read_plan(plan), tmp_path / "out")
    assert comparison.counted() == (0, 2 * 3 + 2)
    assert _progress(comparison, 0, time.monotonic() - 60) == " (0 of 8 runs, about 8 min left)"


def test_the_deadline_ends_what_runs_and_leaves_it_to_the_next_call(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(tiny_recipe(1_000_000))
    out, said = tmp_path / "out", []
    cells = reported_cells(read_plan(plan), out, {"rotary": None})
    slots = Slots(count=2, gpus=[], say=said.append, stop=Stop(2.0))
    slots.work(lambda: [c for c in cells if not c.settled()], lambda: None)
    assert not slots.running and not cells[0].settled() and any("to be continued" in text for text in said)
    reported = call(plan, "-o", out, "--report")
    assert reported.exit_code == LEFT and "Left to run: rotary/validation-seed-1" in reported.output


def test_a_terminated_comparison_leaves_no_run_behind(plan: Path, tmp_path: Path) -> None:
    """SIGTERM: the run saves, ends, and goes on in the next call."""
    long = ("--set", "train.steps=1000000")
    start = "from muse_core.cli import muse; muse()"
    command = [sys.executable, "-c", start, "compare", str(plan), "-o", str(tmp_path / "out"), *long]
    process = warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "out/rotary/validation-seed-1/metrics.jsonl"
    patience = time.monotonic() + 120
    while not (metrics.is_file() and '"train"' in metrics.read_text()):
        assert time.monotonic() < patience and process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "to be continued" in said
    assert not _alive(metrics.parent)
    cells = reported_cells(read_plan(plan, long[1:]), tmp_path / "out", {"rotary": None})
    assert cells[0].started() and not cells[0].settled()


def _alive(run: Path) -> list[str]:
    """Processes that name the run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
                if str(run) in arguments:
                    found.append(arguments)
        except OSError:
            continue  # it ended meanwhile
    return found


def test_runs_with_other_tokenizers_are_compared_on_every_document(tmp_path: Path) -> None:
    """Documents of a few tokens, of which a row holds several, and other ones in other tokens."""
    texts = (f"Note {n}: the answer is {n ** 3}, said over {'and ' * (n % 5)}over." for n in range(90))
    (tmp_path / "notes.txt").write_text("\n\n".join(texts))
    data = {"use": "files", "paths": [str(tmp_path / "notes.txt")], "documents": "paragraph", "validation": 0.3}
    found = {}
    for name, tokenizer in (("bytes", {"use": "bytes"}), ("pairs", {"use": "bpe", "vocabulary": 300})):
        recipe = tomllib.loads(tiny_recipe(2)) | {"data": data | {"tokenizer": tokenizer}}
        recipe["evaluate"] = {"final_tokens": 100_000}
        found[name] = muse_core.train(recipe, run_dir=tmp_path / name, quiet=True)
    one, base = (json.loads((tmp_path / name / "held_out.json").read_text()) for name in found)
    sizes = [dict(zip(*np.unique(of["document"], return_counts=True))) for of in (one, base)]
    assert len(one["tokens"]) != len(base["tokens"]) and sizes[0].keys() == sizes[1].keys()
    row, _ = muse_core.compare(tmp_path / "bytes", tmp_path / "pairs")
    ratio = found["bytes"].summary["held_out_bits_per_byte"] / found["pairs"].summary["held_out_bits_per_byte"]
    assert row["ratio"] == pytest.approx(ratio) and row["low"] < ratio < row["high"]
