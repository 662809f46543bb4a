"""Options of the hebbian memory: what is refused, and with which words."""

import subprocess
import sys

import pytest
from muse_fast_weights.options import FastWeightsOptions

from muse_core.errors import RecipeError
from muse_core.recipe import check_table
from muse_core.testing import build_component


def problems(**memory):
    table = {
        "name": "test",
        "train": {"sequence_length": 64},
        "model": {"width": 48, "depth": 1, "block": [{"use": "fast-weights"} | memory]},
    }
    with pytest.raises(RecipeError) as caught:
        check_table(table)
    return str(caught.value)


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.2, 0.1), (0.1, 100.0)])
def test_decay_bounds_must_be_ordered_rates(bounds):
    with pytest.raises(ValueError, match="initial_decay must be two rates"):
        FastWeightsOptions(initial_decay=bounds)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_the_initial_rate_lies_strictly_between_zero_and_one(rate):
    assert "initial_rate" in problems(initial_rate=rate)


def test_the_initial_rate_lies_below_the_largest():
    """No β of the sigmoid reaches it: the bias was infinite, or not a number."""
    assert "initial_rate = 0.4 must be below most_rate = 0.4" in problems(initial_rate=0.4, most_rate=0.4)


def test_heads_must_divide_the_width():
    assert "heads is 5, which does not divide the width 48" in problems(heads=5)


def test_a_decay_signal_needs_a_publisher():
    assert "decay" in problems(decay="signal")


def test_a_decay_signal_of_incommensurable_heads_is_refused():
    with pytest.raises(RecipeError, match="the decay signal has 3 heads"):
        build_component("memory layer", "fast-weights", {"decay": "signal", "heads": 2}, signals={"decay": (3,)})


def test_listing_needs_no_torch():
    code = "import muse_fast_weights.plugin, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "value"), [("hamiltonians", 4), ("potential", ["non-hermitian"]), ("initial_broadening", [0.1, 1.0])]
)
def test_options_of_the_resolvent_are_refused_beside_a_convolution(name, value):
    assert f'{name} is read with mixing = "resolvent" alone' in problems(**{name: value})


@pytest.mark.parametrize("bounds", [[0.05, 1.0], [2.0, 1.0], [1.0, 101.0]])
def test_the_broadening_of_the_resolvent_must_be_ordered(bounds):
    assert "initial_broadening must be two numbers" in problems(mixing="resolvent", initial_broadening=bounds)


def test_a_convolution_is_refused_beside_a_resolvent():
    assert 'convolution is read with mixing = "convolution" alone' in problems(mixing="resolvent", convolution=0)


def test_a_resolvent_has_one_write_a_token():
    assert "writes = 2 has convolutions alone" in problems(mixing="resolvent", writes=2)


def test_hamiltonians_must_divide_the_channels():
    assert "hamiltonians is 5, which does not divide the 144 channels" in problems(mixing="resolvent", hamiltonians=5)
    with pytest.raises(RecipeError, match="hamiltonians = 5 does not divide"):
        build_component("memory layer", "fast-weights", {"mixing": "resolvent", "hamiltonians": 5}, width=16)


def test_an_activation_needs_a_gate():
    assert 'gate_activation = "sigmoid" without a gate' in problems(gate=False, gate_activation="sigmoid")
