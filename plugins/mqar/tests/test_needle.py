"""Needles in English text against the definition of the task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from muse_mqar.needle import NAMES, PARTS, library_reference

from muse_core.errors import DataError, RecipeError
from muse_core.recipe import check_table
from muse_core.testing import SourceSuite
from muse_core.testing.building import build_component


class TestNeedle(SourceSuite):
    name = "needle"


def make(**options):
    return build_component("source", "needle", options)


def texts(source, split="train", count=20, length=400):
    """Each example's text with the last label, and its digits that count."""
    batch = source.examples(split, np.arange(count), length)
    for ids, labels, counted in zip(batch.inputs, batch.labels, batch.loss_mask):
        assert (ids[1:] == labels[:-1]).all()
        whole = bytes([*ids.tolist(), int(labels[-1])]).decode(errors="replace")
        yield whole, bytes(labels[counted].tolist()).decode()


def test_every_answer_is_the_number_that_stood_with_its_key() -> None:
    for whole, digits in texts(make(distance=[16, 100])):
        context, *questions = whole.split("\nThe number of ")
        asked = [question.split(" is ") for question in questions]
        assert len({key for key, _ in asked}) == 4 and all(key in NAMES for key, _ in asked)
        assert "".join(number for _, number in asked) == digits and len(digits) == 12
        for key, number in asked:
            assert f" The number of {key} is {number}." in context


def test_distances_lie_in_their_range_and_reach_both_ends() -> None:
    found = []
    for whole, _ in texts(make(needles=1, distance=[20, 150]), count=300):
        context, question = whole.split("\nThe number of ")
        statement = f" The number of {question}."
        found.append(len(context.encode()) - context.encode().index(statement.encode()) - len(statement))
    assert 20 <= min(found) < 25 and 125 < max(found) <= 150


def test_splits_read_their_part_of_the_text() -> None:
    """Passages come again in the text, so that one may stand in other parts as well, but not every one does."""
    text = bytes(library_reference().astype(np.uint8))
    parts = {split: text[int(low * len(text)) : int(high * len(text))] for split, (low, high) in PARTS.items()}
    for split in PARTS:
        rows = texts(make(needles=1, distance=[200, 201]), split=split)
        stretches = [stretch for whole, _ in rows if len(stretch := whole.encode()[300:340]) == 40]
        shares = {name: sum(stretch in part for stretch in stretches) for name, part in parts.items()}
        assert shares[split] >= len(stretches) - 1 and all(
            shares[other] < len(stretches) - 1 for other in parts if other != split
        )


def test_a_sequence_that_is_too_short_is_refused() -> None:
    assert make().examples("train", np.arange(1), 235).loss_mask.sum() == 12
    with pytest.raises(DataError, match="need sequences of 235 tokens, not 234"):
        make().examples("train", np.arange(1), 234)
    table = {"name": "x", "data": {"use": "needle"}, "train": {"sequence_length": 234},
             "model": {"width": 16, "depth": 1, "block": ["feed-forward"]}}
    with pytest.raises(RecipeError, match="need a train.sequence_length of at least 235, which 234 is not"):
        check_table(table)


def test_the_order_of_distances_is_checked() -> None:
    with pytest.raises(RecipeError, match="1 ≤ nearest ≤ farthest"):
        make(distance=[5, 4])


def test_no_examples_are_an_empty_batch() -> None:
    batch = make().examples("test", np.arange(0), 400)
    assert all(tensor.shape == (0, 400) for tensor in batch[:3]) and batch.loss_mask.dtype == torch.bool
