"""A run that has not learned what counting gives says so in its summary and events and, where asked, its exit code."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from muse_mqar.source import Mqar

from muse_core.contracts import Batch
from muse_core.errors import Halted, RecipeError
from muse_core.evaluation.references import Counts, Judge, References
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import to_toml
from muse_core.report.reading import read_run
from muse_core.training.setup import Setup

Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]
BROKEN = {"learning_rate": 10.0, "warmup_steps": 0, "clip_norm": 1e9, "steps": 8}
SMALL = {"final_tokens": 2400}


def events(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "events.jsonl") if row["event"] == "not_learned"]


def test_counts_predict_distributions_and_what_they_are_by_hand() -> None:
    counts = Counts(np.array([0, 1, 0, 1, 0, 2], dtype=np.uint16), 4)
    everything = np.arange(4)
    for before in everything:
        single, pair = counts.nats(np.full(4, before), everything)
        assert np.exp(-single).sum() == pytest.approx(1)
        assert np.exp(-pair).sum() == pytest.approx(1)
    single, pair = counts.nats(np.array([0, 3]), np.array([1, 1]))
    assert np.exp(-single) == pytest.approx([3 / 10, 3 / 10])  # 2 of 6, one added to each of 4
    # 0 is followed twice by 1 and once by 2: two kinds. Nothing is known after 3.
    assert np.exp(-pair) == pytest.approx([(2 + 2 * 0.3) / (3 + 2), 0.3])


def test_a_loss_that_is_no_number_or_only_as_good_reaches_nothing() -> None:
    of = References(nats={"uniform": 5.5, "unigram": 3.0, "bigram": 2.0}, bits_per_byte={}, counted=9, scored=9)
    assert of.not_reached(math.nan) == of.not_reached(math.inf) == of.not_reached(5.5) == [*of.nats]
    assert of.not_reached(3.0) == ["unigram", "bigram"] and of.not_reached(1.9) == []
    assert "not better than every token of the vocabulary alike" in of.worse_than(math.nan)


def test_what_is_scored_are_the_labels_that_count_and_their_bytes() -> None:
    lengths, train = np.array([0, 1, 2, 5]), np.array([0, 1, 2, 1, 2, 3, 0, 1])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    inputs, labels = torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.tensor([[1, 2, 3], [0, 1, 2]])
    asked: dict[str, Any] = {}

    def held_out_batches(split: str, length: int, **more: Any) -> list[Batch]:
        asked.update(more, split=split, length=length)
        return [Batch(inputs[:1], labels[:1], mask[:1], None), Batch(inputs[1:], labels[1:], mask[1:], None)]

    corpus = SimpleNamespace(is_text=True, vocabulary_size=4, byte_lengths=lengths,
                             split=lambda name: SimpleNamespace(tokens=train))
    evaluate = SimpleNamespace(halt_above="never", split="test", final_tokens=40, lengths=(1, 4))
    recipe = SimpleNamespace(evaluate=evaluate, train=SimpleNamespace(sequence_length=3))
    found = Judge(SimpleNamespace(corpus=corpus, recipe=recipe, held_out_batches=held_out_batches)).references()
    assert asked == {"split": "test", "length": 3, "rows": 64, "tokens": 40, "span": 12}
    counts, before, after = Counts(train, 4), np.array([0, 1, 2, 3, 1]), np.array([1, 2, 3, 0, 2])
    size = lengths[after].sum()
    assert size != lengths[before].sum()
    single, pair = counts.nats(before, after)
    for name, nats in {"uniform": np.full(5, math.log(4)), "unigram": single, "bigram": pair}.items():
        assert found.nats[name] == pytest.approx(nats.mean())
        assert found.bits_per_byte[name] == pytest.approx(nats.sum() / math.log(2) / size)
    assert (found.counted, found.scored) == (8, 5)


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 2007])
@pytest.mark.parametrize("vocabulary", [3, 600])
def test_counts_in_pieces_are_those_of_the_whole(
    count: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a table of all pairs for few tokens, sorted for many."""
    monkeypatch.setattr("muse_core.evaluation.references.PIECE", 1000)
    tokens = (np.random.default_rng(0).zipf(1.2, count) % vocabulary).astype(np.uint16)
    whole = tokens.astype(np.int64)
    pairs = np.array([*Counter(zip(whole[:-1].tolist(), whole[1:].tolist())).items()], dtype=object)
    counts = Counts(tokens, vocabulary)
    before, after = (np.array([pair[side] for pair, _ in pairs], dtype=np.int64) for side in (0, 1))
    seen = np.array([number for _, number in pairs], dtype=np.int64)
    kinds = np.array([(before == first).sum() for first in range(vocabulary)])
    single = (np.bincount(whole, minlength=vocabulary) + 1) / (count + vocabulary)
    follow = np.bincount(whole[:-1], minlength=vocabulary)
    alone, paired = counts.nats(before, after)
    assert np.exp(-alone) == pytest.approx(single[after])
    expected = (seen + kinds[before] * single[after]) / (follow + kinds)[before]
    assert np.exp(-paired) == pytest.approx(expected)
    assert counts.counted == count


def test_a_diverged_run_says_that_it_is_not_better_than_guessing(table: Table, go: Go, tmp_path: Path) -> None:
    summary = go(table(train=BROKEN, evaluate=SMALL))
    assert summary["held_out_loss"] > math.log(257)
    assert summary["not_better_than"] == ["uniform", "unigram", "bigram"]
    (event,) = events(tmp_path / "run")
    assert "not better than every token of the vocabulary alike" in event["reason"]
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert kept["not_better_than"] == summary["not_better_than"]
    assert kept["references"]["unigram"]["loss"] < kept["references"]["uniform"]["loss"] == math.log(257)
    assert kept["references"]["bigram"]["bits_per_byte"] < kept["references"]["unigram"]["bits_per_byte"]
    assert kept["references"]["held_out_tokens_scored"] == kept["held_out_tokens"]


def test_a_run_that_learns_is_better_than_single_tokens(
    table: Table, go: Go, tmp_path: Path
) -> None:
    train = {"steps": 150, "learning_rate": 1e-2, "batch_size": 8, "micro_batch": 8, "sequence_length": 48}
    summary = go(table(train=train, evaluate=SMALL | {"halt_above": "unigram"}, checkpoint={"every": 1000}))
    assert summary["not_better_than"] in ([], ["bigram"])
    assert summary["held_out_loss"] < summary["references"]["unigram"]["loss"]
    assert [name for row in events(tmp_path / "run") for name in row["not_better_than"]] == summary["not_better_than"]


def test_halting_is_asked_for_and_leaves_the_summary(table: Table, go: Go, tmp_path: Path) -> None:
    with pytest.raises(Halted, match=r"after the last step: the held-out loss, .* counts of single training tokens"):
        go(table(train=BROKEN, evaluate=SMALL | {"halt_above": "unigram"}))
    assert (tmp_path / "run" / "summary.json").exists() and events(tmp_path / "run")
    assert read_run(tmp_path / "run").state == "halted"


def test_evaluations_in_training_halt_from_the_step_that_is_asked_for(table: Table, go: Go, tmp_path: Path) -> None:
    wanted = {"halt_above": "uniform", "halt_from": 4, "every": 2}
    with pytest.raises(Halted, match="at step 4: the held-out loss"):
        go(table(train=BROKEN, evaluate=SMALL | wanted))
    rows = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "eval"]
    assert rows == [2, 4], "the evaluation that halts is on record"
    *_, last = read_rows(tmp_path / "run" / "events.jsonl")
    assert last["event"] == "halt" and "at step 4" in last["reason"] and read_run(tmp_path / "run").state == "halted"


def test_evaluations_in_training_are_judged_on_their_own_tokens(
    table: Table, prepare: Callable[[dict[str, Any]], Setup]
) -> None:
    """The final one reads more of the same text."""
    wanted = {"halt_above": "unigram", "halt_from": 1, "tokens": 240, "final_tokens": 2400}
    judge = Judge(prepare(table(evaluate=wanted)))
    of_all = judge.references()
    of_some = Judge(prepare(table(evaluate=wanted | {"final_tokens": 240}))).references()
    assert (of_some.scored, of_all.scored) == (240, 2400) and of_some.nats["unigram"] != of_all.nats["unigram"]
    low, high = sorted(one.nats["unigram"] for one in (of_some, of_all))
    between = (low + high) / 2
    for ask, references in ((partial(judge.evaluated, 1), of_some), (judge.ended, of_all)):
        with pytest.raises(Halted) if between >= references.nats["unigram"] else nullcontext():
            ask(between)


def test_a_run_that_goes_on_with_another_text_is_held_against_that(
    table: Table, go: Go, prepare: Callable[[dict[str, Any]], Setup], tmp_path: Path
) -> None:
    for name, words in (("here", "the ship sails by night "), ("there", "zebra quartz jungle ")):
        texts = (f"{words * (5 + number % 7)}{number ** 3}" for number in range(60))
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts))

    def recipe(name: str, tokenizer: Any) -> dict[str, Any]:
        own = {"use": "files", "paths": [str(tmp_path / f"{name}.txt")], "documents": "paragraph"}
        return table(data=own | {"tokenizer": tokenizer}, train={"steps": 2}, evaluate=SMALL)

    there = recipe("there", {"use": "bpe", "vocabulary": 300})
    (tmp_path / "second.toml").write_text(to_toml(there))
    convert = {"use": "convert", "to": str(tmp_path / "second.toml"), "fresh": ["embedding.*"]}
    staged = recipe("here", "bytes") | {"stages": ["train", convert]}
    summary, expected = go(staged), Judge(prepare(there)).references()
    assert summary["references"]["uniform"]["loss"] == pytest.approx(math.log(300))
    assert summary["references"]["unigram"]["loss"] == expected.nats["unigram"]
    assert summary["references"]["held_out_tokens_scored"] == summary["held_out_tokens"] == expected.scored
    again = go(staged)
    assert again["references"] == summary["references"] and again["not_better_than"] == summary["not_better_than"]


TASK = {"use": "mqar", "pairs": 2, "vocabulary": 64}


def test_a_task_is_held_against_its_chance_level(table: Table, go: Go, tmp_path: Path) -> None:
    recipe = table(train=BROKEN, evaluate=SMALL)
    recipe["data"] = TASK
    summary = go(recipe)
    assert summary["references"]["chance"]["loss"] == pytest.approx(math.log(32))
    assert summary["not_better_than"] == ["chance"] and "chance in this task" in events(tmp_path / "run")[0]["reason"]


def test_a_task_that_tells_no_chance_level_is_held_against_nothing(
    table: Table, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Mqar.__init__

    def without(self: Mqar, options: Any, context: Any) -> None:
        begun(self, options, context)
        del self.chance

    monkeypatch.setattr(Mqar, "__init__", without)
    recipe = table(evaluate=SMALL)
    recipe["data"] = TASK
    assert go(recipe)["not_better_than"] == []
    recipe["evaluate"] |= {"halt_above": "unigram"}
    with pytest.raises(RecipeError, match="mqar tells no chance level"):
        go(recipe, "another")
