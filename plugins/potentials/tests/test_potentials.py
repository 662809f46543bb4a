"""The formulas of the potentials, their start and their reach."""

import math

import pytest
import torch
from muse_potentials.options import MemoryFeedbackOptions, NonHermitianOptions
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.testing import build_component

WIDTH, HEADS = 64, 8
TOKENS = Tokens(torch.arange(50).expand(4, -1))


def build(name, signals=None, **options):
    built = build_component("potential", name, options, width=WIDTH, heads=HEADS, signals=signals, dtype="float64")
    return built.double()


@pytest.fixture
def x():
    return torch.randn(4, 50, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_hermitian_is_linear_and_without_decay(x):
    potential = build("hermitian", scale=0.7)
    value, decay = potential(x, {}, TOKENS)
    torch.testing.assert_close(value, 0.7 * x @ potential.potential.weight.T)
    assert decay.shape == value.shape == (4, 50, HEADS)
    assert decay.count_nonzero() == 0
    assert 0.6 < value.square().mean().sqrt() < 0.8


@pytest.mark.parametrize("name", ["hermitian", "non-hermitian"])
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_a_small_potential_does_not_outgrow_its_scale_within_some_steps(x, name, scale):
    """Adam moves every weight by the rate whatever its size, so the scale must not be in W: 20 steps that all push V up
    leave it within half of its scale."""
    potential = build(name, scale=scale)
    adam = torch.optim.Adam(potential.potential.parameters(), lr=2e-3)
    sizes = []
    for _ in range(20):
        value, _ = potential(x, {}, TOKENS)
        sizes.append(value.square().mean().sqrt().item() / scale)
        adam.zero_grad()
        (-value[..., ::2].square().mean() - value.mean()).backward()
        adam.step()
    assert sizes[0] == pytest.approx(1.0, rel=0.2)
    assert 1.001 < sizes[-1] / sizes[0] < 1.5


@pytest.mark.parametrize("kind", ["adaptive", "fixed"])
def test_decay_starts_log_spaced_between_its_bounds(x, kind):
    options = {"base_decay": 0.01, "initial_decay": [0.002, 0.5], "decay": kind}
    _, decay = build("non-hermitian", **options)(x, {}, TOKENS)
    expected = 0.01 + torch.tensor([0.002 * 250 ** (h / 7) for h in range(8)], dtype=torch.float64)
    torch.testing.assert_close(decay, expected.expand_as(decay), rtol=1e-6, atol=0)


def test_decay_follows_the_token_and_never_falls_below_its_base(x):
    potential = build("non-hermitian", base_decay=0.01)
    with torch.no_grad():
        potential.decay.weight.normal_(std=3.0)
    _, decay = potential(x, {}, TOKENS)
    expected = 0.01 + F.softplus(x @ potential.decay.weight.T + potential.dynamics.offset)
    torch.testing.assert_close(decay, expected)
    assert decay.min() >= 0.01
    assert decay.std(dim=(0, 1)).min() > 0.1


def test_gradients_reach_every_parameter_at_the_start(x):
    potential = build("non-hermitian")
    value, decay = potential(x, {}, TOKENS)
    (value.square().sum() + decay.log().square().sum()).backward()
    assert {name for name, _ in potential.named_parameters()} == {
        "potential.weight",
        "decay.weight",
        "dynamics.offset",
    }
    assert all(parameter.grad.abs().min() > 0 for parameter in potential.parameters())


def test_fixed_decay_has_nothing_to_learn(x):
    potential = build("non-hermitian", decay="fixed")
    assert [name for name, _ in potential.named_parameters()] == ["potential.weight"]
    assert "fixed" in potential.state_dict()


def test_memory_feedback_reads_the_signal(x):
    potential = build("memory-feedback", signals={"memory_before": (2, 5)})
    answer = torch.randn(4, 50, 2, 5, dtype=torch.float64)
    value, decay = potential(x, {"memory_before": answer}, TOKENS)
    torch.testing.assert_close(value, answer.reshape(4, 50, 10) @ potential.potential.weight.T)
    assert decay.count_nonzero() == 0
    assert value.square().mean().sqrt() > 0.3


def test_memory_feedback_without_a_memory_is_zero(x):
    potential = build("memory-feedback")
    assert list(potential.parameters()) == []
    for term in potential(x, {}, TOKENS):
        assert term.shape == (4, 50, HEADS)
        assert term.dtype == torch.float64
        assert term.count_nonzero() == 0


def test_memory_feedback_can_insist():
    assert [need.optional for need in MemoryFeedbackOptions().requires()] == [True]
    assert [need.optional for need in MemoryFeedbackOptions(required=True).requires()] == [False]


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.5, 0.1), (0.1, math.inf)])
def test_impossible_decays_are_named(bounds):
    with pytest.raises(ValueError, match="initial_decay must be two rates"):
        NonHermitianOptions(initial_decay=bounds)


def test_autocast_returns_single_precision(x):
    for name in ("hermitian", "non-hermitian"):
        with torch.autocast("cpu", torch.bfloat16):
            terms = build(name).float()(x.bfloat16(), {}, TOKENS)
        assert [term.dtype for term in terms] == [torch.float32, torch.float32]


@pytest.mark.parametrize("name", ["hermitian", "non-hermitian"])
def test_weights_in_which_the_scale_lay_are_refused(name):
    """Those of 0.1 have the same names and shapes; loaded, V would be scaled twice."""
    old = build(name, scale=1.0).state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*potential.scale"):
        build(name, scale=0.1).load_state_dict(old)
    build(name, scale=1.0).load_state_dict(old)
