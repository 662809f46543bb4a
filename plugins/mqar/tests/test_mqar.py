"""Examples against the definition of the task."""

from __future__ import annotations

import numpy as np
import pytest

from muse_core.errors import DataError, RecipeError
from muse_core.recipe import check_table
from muse_core.testing import SourceSuite
from muse_core.testing.building import build_component

V, K, N = 64, 4, 40


class TestConformance(SourceSuite):
    name = "mqar"


def make(**options):
    return build_component("source", "mqar", {"vocabulary": V, "pairs": K, **options})


def some(source, split="train", count=200, length=N):
    batch = source.examples(split, np.arange(count), length)
    return batch.inputs.numpy(), batch.labels.numpy(), batch.loss_mask.numpy()


def test_every_question_is_a_key_and_its_label_the_value_that_followed_it() -> None:
    ids, labels, loss_mask = some(make())
    for row in range(len(ids)):
        keys, values = ids[row, 0 : 2 * K : 2], ids[row, 1 : 2 * K : 2]
        assert len(set(keys)) == K and (keys >= 1).all() and (keys < V // 2).all()
        assert (values >= V // 2).all() and (values < V).all()
        asked = np.flatnonzero(loss_mask[row])
        assert len(asked) == K and (asked >= 2 * K).all() and not (asked % 2).any()
        answer = dict(zip(keys, values))
        assert sorted(ids[row, asked]) == sorted(keys)
        assert [answer[key] for key in ids[row, asked]] == list(labels[row, asked])


def test_random_tokens_fill_the_rest_and_no_label_there_counts() -> None:
    ids, _, loss_mask = some(make(), count=400)
    rest = ids[:, 2 * K :][~loss_mask[:, 2 * K :]]
    share = np.bincount(rest, minlength=V) / len(rest)
    assert abs(share - 1 / V).max() < 5 * (1 / V / len(rest)) ** 0.5


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_first_questions_fall_into_slots_by_their_weight(power: float) -> None:
    """With one pair the slot of the question follows i^(a−1) exactly."""
    source = build_component("source", "mqar", vocabulary=V, pairs=1, power=power)
    _, _, loss_mask = some(source, count=4000, length=12)
    slots = (np.argmax(loss_mask, axis=1) - 2) // 2
    weights = np.arange(1, 6) ** (power - 1.0)
    share = np.bincount(slots, minlength=5) / 4000
    assert abs(share - weights / weights.sum()).max() < 0.03


def test_keys_come_in_the_order_in_which_their_slots_were_drawn() -> None:
    """The first pair is asked for soonest on average, as the likeliest slot is drawn first."""
    ids, _, loss_mask = some(make(), count=2000)
    where = [[np.flatnonzero(loss_mask[row] & (ids[row] == key))[0] for key in ids[row, 0 : 2 * K : 2]] for row in
             range(len(ids))]
    means = np.mean(where, axis=0)
    assert (np.diff(means) > 0).all()


def test_an_example_depends_on_seed_split_and_number_alone() -> None:
    whole = some(make(), count=6)
    piece = make().examples("train", np.arange(3, 6), N)
    assert (whole[0][3:] == piece.inputs.numpy()).all()
    for other in (some(make(), "test", 6), some(make(seed=1), count=6)):
        assert (whole[0] != other[0]).mean() > 0.8


def test_easier_examples_are_for_training_only() -> None:
    source = make(easier=(1, 2))
    numbers = some(source, count=300)[2].sum(1)
    assert set(numbers) == {1, 2, K} and (np.bincount(numbers)[[1, 2, K]] > 60).all()
    assert set(some(source, "validation", 50)[2].sum(1)) == {K}


def test_a_length_that_does_not_hold_the_pairs_is_refused() -> None:
    with pytest.raises(DataError, match="at least 16"):
        some(make(), length=14)
    table = {
        "name": "x",
        "data": {"use": "mqar", "pairs": 64},
        "model": {"block": ["feed-forward"]},
        "train": {"sequence_length": 128},
    }
    with pytest.raises(RecipeError, match="64 pairs need an even train.sequence_length of at least 256"):
        check_table(table)
    with pytest.raises(RecipeError, match="easier holds numbers of pairs up to pairs = 4"):
        make(easier=(8,))
