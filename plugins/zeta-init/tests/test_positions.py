"""The features, their wavelengths and their controls."""

import math

import pytest
import torch
from muse_zeta_init.zeros import zeta_zeros

from muse_core.errors import RecipeError
from muse_core.testing import build_component
from muse_core.testing.sequences import make_tokens


def build(width=16, **options):
    return build_component("layer", "zeta-positions", options, width=width, dtype="float64").double()


def features(layer, positions, width=16):
    tokens = make_tokens(1, len(positions))._replace(positions=torch.tensor([positions]))
    return layer(torch.zeros(1, len(positions), width, dtype=torch.float64), None, {}, tokens).update[0]


@torch.no_grad()
def test_features_are_sines_and_cosines_of_the_position():
    layer = build(scale=0.5, max_frequency=1.0)
    omega = (zeta_zeros(1) / zeta_zeros(8)).float().double()
    update = features(layer, [0, 3, 70_000])
    for row, n in zip(update, (0, 3, 70_000)):
        torch.testing.assert_close(row, 0.5 * torch.cat(((n * omega).sin(), (n * omega).cos())), rtol=0, atol=1e-8)


def test_positions_restart_with_documents():
    tokens = make_tokens(3, 12, documents=True)
    update = build()(torch.zeros(3, 12, 16, dtype=torch.float64), None, {}, tokens).update
    torch.testing.assert_close(update[1, 4], update[0, 0])
    assert (update[1, 5:] - update[0, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["zeta", "random", "geometric"])
def test_frequencies_descend_from_the_largest(kind):
    frequency = build(width=192, frequencies=kind, max_frequency=3.0).frequency
    assert frequency.shape == (96,)
    assert frequency[0] <= 3.0 + 1e-6
    assert frequency.diff().max() <= 0


def test_wavelengths():
    """96 zeta frequencies reach 32 tokens; geometric ones reach what is asked."""
    assert round(2 * math.pi / build(width=192).frequency[-1].item()) == 32
    longest = build(width=192, frequencies="geometric", longest=5000.0).frequency[-1].item()
    assert 2 * math.pi / longest == pytest.approx(5000, rel=1e-5)


def test_an_odd_width_leaves_the_last_channel_alone():
    update = features(build(width=17), [0, 1, 2], width=17)
    assert update.shape == (3, 17)
    assert update[:, -1].count_nonzero() == 0
    assert update[:, :-1].abs().amax(0).min() > 0


def test_more_frequencies_than_zeros_is_a_sentence():
    with pytest.raises(RecipeError, match="1537 zeta zeros are needed"):
        build(width=2 * 1537)
