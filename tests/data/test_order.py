"""The order is a permutation in every epoch and a function of (seed, epoch, index)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.data.permutation import permute, shuffled

seeds = st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 2**40))
def test_every_item_comes_once(size, seed, epoch):
    items = permute(np.arange(size), size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(items), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 2**50), seed=seeds, data=st.data())
def test_places_are_answered_one_by_one_as_together(size, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)))
    together = permute(places, size, seed=seed, epoch=3)
    assert all(0 <= item < size for item in together)
    assert [permute(place[None], size, seed=seed, epoch=3)[0] for place in places] == together.tolist()


@settings(deadline=None)
@given(size=st.integers(1, 40), seed=seeds, first=st.integers(0, 40), count=st.integers(0, 40))
def test_a_stretch_across_epochs_is_the_epochs_in_turn(size, seed, first, count):
    index = np.arange(first, first + count)
    epochs = range(1 + (first + count) // size)
    whole = np.concatenate([permute(np.arange(size), size, seed=seed, epoch=epoch) for epoch in epochs])
    assert np.array_equal(shuffled(index, size, seed=seed), whole[index])


def test_seeds_and_epochs_give_unrelated_orders():
    size = 20_000
    orders = [permute(np.arange(size), size, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one in range(4):
        for other in range(one):
            agreements = int((orders[one] == orders[other]).sum())
            assert agreements < 12, "of random permutations one place in all agrees on average"


def test_neighbours_are_torn_apart():
    size = 20_000
    steps = np.abs(np.diff(permute(np.arange(size), size, seed=5, epoch=0)))
    assert (steps == 1).sum() < 14, "of random permutations two neighbours in all stay together on average"
    assert abs(steps.mean() / size - 1 / 3) < 0.01, "the mean distance of two random places"


def test_the_order_never_changes():
    """Runs resume under later versions: these values are part of the format."""
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [1, 4, 2, 5, 0, 8, 3, 6, 7, 9]
