"""A source that makes examples in place of text: what is trained, what is held out, what is refused."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from muse_core import fault_injection
from muse_core.cli.run_tables import report_summary
from muse_core.data.tasks import Numbers
from muse_core.errors import DataError, RecipeError
from muse_core.evaluation.diagnostics import diagnose
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import read_rows
from muse_core.report.reading import read_run
from muse_core.report.tables import key_numbers
from tests.training.conftest import opened

TASK = {"data": {"use": "mqar", "vocabulary": 32, "pairs": 2}, "train": {"sequence_length": 16}}


@pytest.fixture
def task(table: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    recipe = table(**TASK)
    recipe["data"].pop("cache"), recipe["data"].pop("tokenizer")
    return recipe


def test_a_run_trains_on_fresh_examples_and_reports_accuracy(task: Any, go: Any, losses: Any, tmp_path: Path) -> None:
    summary = go(task | {"evaluate": {"final_tokens": 160}})
    assert summary["held_out_tokens"] == 10 * 2, "ten examples of two questions"
    kept = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert kept["document"] == list(range(10)) and sum(kept["tokens"]) == 20 and "documents" not in kept
    assert summary["held_out_accuracy"] == sum(kept["hits"]) / 20
    assert summary["held_out_loss"] == pytest.approx(sum(kept["nats"]) / 20)
    assert losses()[1] != losses()[2]


def test_what_a_task_prints_is_its_accuracy_and_no_bits_per_byte(
    task: Any, prepare: Any, tmp_path: Path
) -> None:
    recipe = task | {"evaluate": {"every": 2, "tokens": 160, "final_tokens": 160}}
    said = io.StringIO()
    display = Display(Console(file=said, width=200))
    with opened(prepare(recipe), tmp_path / "run", recipe, display) as run:
        summary = run.go()
        report_summary(summary, run.directory, display)
    told = said.getvalue()
    assert re.search(r"step 1/\d+  loss \d\.\d{4}  [\d,]+ counted tokens/s", told)
    assert re.search(r"speed      [\d,]+ counted tokens/s over", told) and "on 20 counted validation tokens" in told
    assert not re.search(r"\d tokens/s", told)
    assert "step 2/" in told and "bits/byte" not in told and "baselines  chance" in told
    evaluations = task["train"]["steps"] // 2 - 1  # the last is the final one
    assert len(re.findall(r"held out: loss \d\.\d{4}  accuracy [01]\.\d{4}\n", told)) == evaluations
    assert f"accuracy   {summary['held_out_accuracy']:.4f} of the labels that count" in told
    numbers = dict(key_numbers(read_run(tmp_path / "run")))
    assert numbers["held-out accuracy"] == f"{summary['held_out_accuracy']:.4f}"
    batch, steps = task["train"]["batch_size"], task["train"]["steps"]
    assert numbers["counted training tokens"] == f"{2 * batch * steps:,}" and "training tokens" not in numbers
    assert "counted tokens per second" in numbers
    assert "held-out bits per byte" not in numbers and "held-out bits per token" in numbers


def test_three_losses_that_are_no_number_are_rolled_back(task: Any, go: Any, losses: Any, tmp_path: Path) -> None:
    calls = []

    def spoilt(result: Any) -> Any:
        calls.append(1)
        return result._replace(total=result.total * math.nan) if 8 < len(calls) <= 14 else result

    with fault_injection.installed({"loss": spoilt}):
        summary = go(task | {"train": task["train"] | {"steps": 8, "micro_batch": 2}, "checkpoint": {"every": 2}})
    assert summary["steps"] == 8 and summary["rollbacks"] == 1
    (incident,) = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "incident"]
    assert incident["onset"] == 4 and incident["target"] == 4 and incident["data"] == [4, 7]
    assert sorted(losses()) == list(range(1, 9)) and all(map(math.isfinite, losses().values()))


def test_batches_are_functions_of_step_and_seed(task: Any, prepare: Any) -> None:
    data = prepare(task).training_data()
    first, second = data.batch(0), data.batch(1)
    assert (first.inputs == data.batch(0).inputs).all() and (first.inputs != second.inputs).any()
    assert (data.batch(0, [(0, 1)]).inputs == second.inputs).all(), "a quarantined step is passed over"
    other = prepare(task | {"seed": 4}).training_data().batch(0)
    assert (first.inputs != other.inputs).any()


def test_what_a_task_does_not_have_is_said(task: Any, prepare: Any) -> None:
    with pytest.raises(DataError, match="a task has no validation text"):
        prepare(task).corpus.split("validation")
    setup = prepare(task)
    with pytest.raises(DataError, match="is a task, which has no validation text: give a text with --text"):
        diagnose(setup)
    assert math.isfinite(diagnose(setup, "1 2 3 4").loss)
    with pytest.raises(RecipeError, match="data.order: a task has separate examples"):
        prepare(task | {"data": task["data"] | {"order": "streams"}})


def test_weights_of_a_run_on_a_task_bring_no_tokenizer(
    task: Any, table: Any, go: Any, prepare: Any, tmp_path: Path
) -> None:
    """The tokenizer of the core was said to break its contract, and to take that tokenizer was the advice."""
    go(task | {"train": task["train"] | {"steps": 1}}, "task")
    start = {"init": {"from": str(tmp_path / "task")}, "train": {"steps": 1}}
    text = table(**start)
    with pytest.raises(RecipeError, match="is a run on a task, whose tokens stand for no text - name another one"):
        prepare(text | {"data": text["data"] | {"tokenizer": {"use": "run", "from": str(tmp_path / "task")}}})
    with pytest.raises(RecipeError, match="other tokens - start the embeddings afresh with init.fresh"):
        go(text, "afresh")
    go(table(**start | {"init": start["init"] | {"fresh": ["embedding.*"]}}), "right")


def test_the_tokens_of_a_task_are_numbers() -> None:
    numbers = Numbers(32)
    assert numbers.decode(numbers.encode("3 31 0")) == "3 31 0 " and numbers.vocabulary_size == 32
    for wrong in ("3 32", "a"):
        with pytest.raises(DataError, match="numbers below 32"):
            numbers.encode(wrong)
    assert numbers.encode("").dtype == np.int64


def test_tokens_of_held_out_text_know_their_document(table: Any, prepare: Any) -> None:
    setup = prepare(table())
    text, length = setup.corpus.split("validation"), 24
    documents = setup.held_out_documents("validation", length, tokens=2400, span=2 * length)
    batches = setup.held_out_batches("validation", length, rows=7, tokens=2400, span=2 * length)
    rows = np.concatenate([batch.inputs.numpy() for batch in batches])
    assert documents.shape == rows.shape == (100, length) and len(np.unique(documents)) > 3
    ends = [*text.starts[1:], len(text.tokens)]
    for own, row in zip(documents, rows):
        for begin, end in zip(found := np.r_[0, np.flatnonzero(np.diff(own)) + 1], [*found[1:], length]):
            document = own[begin]
            of_document = text.tokens[text.starts[document] : ends[document]].astype(np.uint8).tobytes()
            assert row[begin:end].astype(np.uint8).tobytes() in of_document
