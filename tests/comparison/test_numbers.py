"""What a comparison makes of the numbers of its runs, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch

from muse_core.comparison import runs as runs_module
from muse_core.comparison.cells import chosen_values, reported_cells, scores_by_value, tuning_cells
from muse_core.comparison.parameters import _text, departures
from muse_core.comparison.plan import read_plan
from muse_core.comparison.report import compose, text_of
from muse_core.comparison.runs import Comparison
from muse_core.contracts import Batch
from muse_core.metrics.jsonl import NEEDED
from tests.comparison.conftest import PLAN, ended, finish, mean_of


@pytest.mark.parametrize("measure", ["loss", "bits_per_byte", "accuracy"])
def test_a_report_compares_the_seeds_that_both_have_in_what_the_plan_measures(plan, tmp_path: Path, measure) -> None:
    text = f'measure = "{measure}"\n' + PLAN.partition("[tune]")[0].replace("[1, 2]", "[1, 2, 3]")
    read, out = read_plan(plan(text)), tmp_path / "out"
    means, nats = {"one": [], "other": []}, {"one": [], "other": []}
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        if (cell.variant.name, cell.seed) == ("one", 3):
            continue
        of_rows = [float(len(nats[cell.variant.name]) + place + 3) for place in range(2)]
        nats[cell.variant.name].append(sum(of_rows) + (cell.variant.name == "other"))
        of_rows[1] += cell.variant.name == "other"
        rows = {"nats": of_rows, "hits": [2 * one for one in of_rows], "bytes": [20, 30], "tokens": [10, 30]}
        means[cell.variant.name].append(mean_of(rows, measure))
        ended(cell, [4, 7], rows, measure, train_seconds=cell.seed)
    report = compose(read.plan, Comparison(read, out).runs())
    one, other = report["arms"]
    assert one["seeds"] == [1, 2] and other["seeds"] == [1, 2, 3]
    assert one["by_seed"] == pytest.approx({"1": means["one"][0], "2": means["one"][1]})
    shown = {name: " | ".join(f"{mean:.4f}" for mean in of) for name, of in means.items()}
    lines = text_of(report).splitlines()
    table = lines.index("| variant | seed 1 | seed 2 | seed 3 |")
    assert lines[table + 2:table + 4] == [f"| one | {shown['one']} |  |", f"| other | {shown['other']} |"]
    assert one["mean"] == pytest.approx(sum(means["one"]) / 2)
    assert other["mean"] == pytest.approx(sum(means["other"]) / 3)
    assert (one["seconds"], other["seconds"]) == (1.5, 2.0) and "against_baseline" not in one
    pairs = list(zip(nats["other"], nats["one"]))
    due = [2 * (mine - theirs) / 40 if measure == "accuracy" else mine / theirs for mine, theirs in pairs]
    assert other["against_baseline"]["by_seed"] == pytest.approx(tuple(due))


def test_tokens_and_seconds_are_those_of_all_stages_where_runs_tell_them(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0])), tmp_path / "out"
    of_all = {"train_tokens_all_stages": 600, "train_seconds_all_stages": 4.0}
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        told = {"train_tokens": 100, "train_seconds": 2.0} | (of_all if cell.variant.name == "other" else {})
        ended(cell, [4], {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]}, **told)
    arms = compose(read.plan, Comparison(read, out).runs())["arms"]
    told = [(arm["tokens"], arm["seconds"], arm["tokens_per_second"]) for arm in arms]
    assert told == [(100.0, 2.0, 50.0), (600.0, 4.0, 150.0)]


def test_runs_that_learned_next_to_nothing_are_named(plan, tmp_path: Path) -> None:
    """Two of them may well differ, which says nothing of what was asked."""
    read, out = read_plan(plan(PLAN.partition("[tune]")[0])), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        worse = ["unigram", "bigram"] if (cell.variant.name, cell.seed) == ("one", 2) else []
        ended(cell, [4], {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]}, not_better_than=worse)
    report = compose(read.plan, Comparison(read, out).runs())
    assert [arm["not_learned"] for arm in report["arms"]] == [{"unigram": 1}, {}]
    said = [line for line in text_of(report).splitlines() if "not better than" in line]
    assert said == ["1 of 2 runs of one are not better than counts of single training tokens."]
    assert "Held-out bits per byte" in text_of(report) and "per token" not in text_of(report)


def test_bits_of_a_task_are_told_per_token(plan, tmp_path: Path) -> None:
    """It has no bytes; what counts as one is a token whose label counts."""
    read, out = read_plan(plan()), tmp_path / "out"
    for cell in (*tuning_cells(read, out), *reported_cells(read, out, {"one": 1e-3, "other": 1e-3})):
        rows = {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]}
        ended(cell, [4], rows, references={"chance": {"loss": 3.5, "bits_per_byte": 5.0}})
    told = text_of(compose(read.plan, Comparison(read, out).runs()))
    assert "Held-out bits per token" in told and "| bits per token |" in told and "per byte" not in told
    assert "on validation text, bits per token:" in told


@pytest.mark.parametrize(("took", "warned"), [(1.95, False), (2.5, True), (1.5, True)])
def test_training_that_took_other_seconds_than_the_budget_is_told(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, warned: bool
) -> None:
    read = read_plan(plan(PLAN.partition("[tune]")[0] + "budget = { seconds = 2 }\n"))
    out, steps = tmp_path / "out", {"one": 10, "other": 20}
    monkeypatch.setattr(runs_module, "steps_in_time", lambda *_: steps)
    for cell in reported_cells(read, out, {"one": None, "other": None}, steps):
        seconds = took if cell.variant.name == "other" else 2.0
        ended(cell, [4], {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]}, train_seconds=seconds)
    text = text_of(compose(read.plan, Comparison(read, out).runs()))
    assert ("\n\nTraining took one 2.0 s, other" in text) == warned, text
    assert text.index("Equal training time") < text.index("| variant |")


@pytest.mark.parametrize(("measure", "key"), [("loss", "tokens"), ("bits_per_byte", "bytes")])
def test_one_seed_on_other_text_is_enough_to_compare_none(plan, tmp_path: Path, measure: str, key: str) -> None:
    """As many tokens in all, of which one document has one more and one has one less."""
    read, out = read_plan(plan(f'measure = "{measure}"\n' + PLAN.partition("[tune]")[0])), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        read_of = [9, 11] if (cell.variant.name, cell.seed) == ("other", 2) else [10, 10]
        rows = {"nats": [1.0, 2.0], "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]} | {key: read_of}
        ended(cell, [4, 7], rows, measure)
    _, other = compose(read.plan, Comparison(read, out).runs())["arms"]
    assert "against_baseline" not in other and other["other_text"] == "20 of 2 documents and 20 of 2 documents"


def test_runs_of_which_one_counts_rows_for_their_first_document_are_not_compared(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN.partition("[tune]")[0].replace("[1, 2]", "[1]"))), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None, "other": None}):
        rows = {"nats": [1.0, 2.0], "hits": [0, 0], "bytes": [10, 10], "tokens": [10, 10]}
        ended(cell, [4, 7], rows)
        if cell.variant.name == "other":
            (cell.path / "held_out.json").write_text(json.dumps({"document": [4, 7]} | rows))
    _, other = compose(read.plan, Comparison(read, out).runs())["arms"]
    assert "an earlier version" in other["other_text"]


def test_watched_metrics_are_reduced_by_their_names_from_first_to_last(plan, tmp_path: Path) -> None:
    text = 'watch = ["*/rate", "*/decay_min", "*/decay_max", "*/decay_mx"]\n' + PLAN.partition("[tune]")[0]
    read, out = read_plan(plan(text)), tmp_path / "out"
    for cell in reported_cells(read, out, {"one": None}):
        ended(cell, [0], {"nats": [1.0], "hits": [0], "bytes": [10], "tokens": [10]})
        rows = [
            {"event": event, "sequence": number, "attempt": 1,
             **dict.fromkeys(NEEDED.get(event, ()), 0), "step": number,
             **{f"{layer}/{name}": value + 10 * number + 100 * cell.seed + 1000 * (layer == "b")
                for layer in "ab" for name, value in (("rate", 1.0), ("decay_min", 2.0), ("decay_max", 3.0))}}
            for number, event in enumerate(("train", "probe", "train", "eval", "final"))
        ]
        (cell.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = compose(read.plan, Comparison(read, out).runs())
    found = report["watched"]["one"]
    assert report["not_found"] == ["*/decay_mx"] and "no metric of these runs is called */decay_mx" in text_of(report)
    assert found["*/rate"] == [1 + 10 * n + 150 + 500 for n in (0, 2, 4)], "means over layers and seeds"
    assert found["*/decay_min"] == [2 + 10 * n + 100 for n in (0, 2, 4)]
    assert found["*/decay_max"] == [3 + 10 * n + 1200 for n in (0, 2, 4)]


def test_a_value_is_judged_by_its_mean_over_all_seeds_of_the_sweep(plan, tmp_path: Path) -> None:
    read, out = read_plan(plan(PLAN + "seeds = [0, 5]\n")), tmp_path / "out"
    sweep = [cell for cell in tuning_cells(read, out) if cell.variant.name == "one"]
    scores = {(1e-3, 0): 1.0, (1e-3, 5): 3.0, (2e-3, 0): 1.9, (2e-3, 5): 1.9}
    for cell in sweep[:3]:
        finish(cell, scores[cell.value, cell.seed])
    assert dict(scores_by_value(read.plan, sweep)).keys() == {1e-3}, "a value with a run to come has no mean"
    finish(sweep[3], scores[sweep[3].value, sweep[3].seed])
    assert chosen_values(read.plan, sweep)["one"] == 2e-3


def test_a_run_that_was_finished_after_it_failed_has_not_failed(plan, tmp_path: Path) -> None:
    cell = tuning_cells(read_plan(plan()), tmp_path / "out")[0]
    cell.path.mkdir(parents=True)
    (cell.path / "failed.txt").write_text("exit code 4: it diverged\n")
    assert cell.settled() and cell.failure() == "exit code 4: it diverged"
    (cell.path / "summary.json").write_text('{"held_out_bits_per_byte": 2.0}')
    assert cell.settled() and cell.failure() is None


@pytest.mark.parametrize(("measure", "due"), [("loss", [2.0, 1.0, 1.0]), ("bits_per_byte", [6.0, 0.0, 9.0])])
def test_variants_are_tried_on_the_text_that_they_will_be_measured_on(plan, measure: str, due: list[float]) -> None:
    """The plan's split; counted labels or their bytes by document and row."""
    asked = []
    labels, mask = torch.tensor([[3, 3, 0], [9, 9, 9]]), torch.tensor([[True, True, True], [False, False, True]])

    def held_out_batches(split: str, length: int, **more: int) -> list[Batch]:
        asked.append((split, length, more["tokens"], more["span"]))
        return [Batch(labels, labels, mask, None)]

    def held_out_documents(split: str, length: int, **more: int) -> np.ndarray:
        asked.append((split, length, more["tokens"], more["span"]))
        return np.array([[4, 4, 5], [5, 5, 5]])

    evaluate = SimpleNamespace(final_tokens=60, lengths=(1, 4))
    setup = SimpleNamespace(
        recipe=SimpleNamespace(evaluate=evaluate, train=SimpleNamespace(sequence_length=3)),
        corpus=SimpleNamespace(
            byte_lengths=np.arange(10), tokenizer=SimpleNamespace(digest="t"), digest="d", is_text=True,
        ),
        held_out_batches=held_out_batches, held_out_documents=held_out_documents,
    )
    found = _text(setup, read_plan(plan(f'split = "test"\nmeasure = "{measure}"\n' + PLAN)).plan)
    assert asked == [("test", 3, 60, 12)] * 2 and found[:3] == ("t", "d", 3)
    assert found.rows.document.tolist() == [4, 5, 5] and found.rows.below.tolist() == due


def test_a_variant_departs_that_is_larger_or_smaller_than_the_tolerance_allows(plan) -> None:
    read = read_plan(plan("parameter_tolerance = 0.1\n" + PLAN)).plan
    for count, shown in ((89, "-11.0%"), (111, "+11.0%")):
        (said,) = departures(read, {"one": 100, "other": count})
        assert shown in said and "'other'" in said
    assert departures(read, {"one": 100, "other": 91}) == departures(read, {"one": 100, "other": 109}) == []
    assert departures(attrs.evolve(read, parameters="any"), {"one": 100, "other": 900}) == []
