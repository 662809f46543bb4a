"""The potential and the initializer against their formulas, the schedules, and the controls."""

import math

import pytest
import torch
from muse_prime_bump.bumps import potential, prime_powers, step_down, weights
from muse_prime_bump.options import PrimeBumpInitializerOptions, PrimeBumpOptions
from muse_prime_bump.potential import scheduled
from muse_prime_bump.primes import lowest_primes

from muse_core.contracts import Tokens
from muse_core.testing import build_component

HEADS, CONTEXT = 3, 40


def build(**options):
    return build_component("potential", "prime-bump", options, heads=HEADS, sequence_length=CONTEXT).double()


def values(module, positions):
    tokens = Tokens(torch.tensor([positions]))
    with torch.no_grad():
        return module(torch.zeros(1, len(positions), 16, dtype=torch.float64), {}, tokens)


def smooth_step(t):
    if t <= 0:
        return 1.0
    if t >= 1:
        return 0.0
    up, down = math.exp(-1 / (1 - t)), math.exp(-1 / t)
    return up / (up + down)


def written_out(context, epsilon, max_power):
    """Σ_p Σ_k over every prime below e^{x_max + 6 √ε}, number by number, scaled to unit root mean square."""
    reach = math.log(context) + 6 * epsilon**0.5
    primes = [n for n in range(2, math.floor(math.exp(reach)) + 1) if all(n % d for d in range(2, math.isqrt(n) + 1))]
    found = []
    for n in range(context):
        x, total = math.log(1 + n), 0.0
        for p in primes:
            for k in range(1, max_power + 1):
                centre = k * math.log(p)
                if centre > reach:
                    break
                weight = math.log(p) * p ** (-k * (0.5 + epsilon)) * smooth_step(epsilon * centre - 1)
                total += weight * epsilon**-0.5 * math.exp(-((x - centre) ** 2) / (2 * epsilon))
        found.append(total)
    scale = math.sqrt(sum(value**2 for value in found) / context)
    return torch.tensor(found, dtype=torch.float64) / scale


@pytest.mark.parametrize("epsilon, max_power", [(0.02, 3), (0.3, 2), (0.9, 5), (0.01, 1)])
def test_the_potential_is_the_formula_written_out(epsilon, max_power):
    expected = written_out(CONTEXT, epsilon, max_power)
    found = potential(CONTEXT, epsilon, epsilon, max_power, "primes", 0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    module = build(epsilon=[epsilon, epsilon], max_power=max_power, strength=0.5)
    value, decay = values(module, list(range(CONTEXT)))
    torch.testing.assert_close(value[0], 0.5 * expected[:, None].expand(-1, HEADS), rtol=1e-5, atol=1e-6)
    assert decay.shape == value.shape and not decay.any()


def test_what_lies_beyond_the_reach_does_not_count():
    """Twice the reach adds less than rounding."""
    epsilon = 0.05
    x = torch.arange(1, CONTEXT + 1, dtype=torch.float64).log()
    powers = prime_powers(x[-1].item() + 12 * epsilon**0.5, 3)
    far = weights(powers, epsilon) * (-(x[:, None] - powers.centre).square() / (2 * epsilon)).exp()
    beyond = far[:, powers.centre > x[-1] + 6 * epsilon**0.5].sum(1)
    assert beyond.max() < 1e-5 * far.sum(1).max()


def test_bumps_narrow_to_peaks_at_prime_powers():
    """At small ε V stands out at n + 1 = 2, 3, 4, 5, 7, 8 and 9 and vanishes at 1 and 6."""
    value = potential(64, 1e-4, 1e-4, 3, "primes", 0)
    assert value[[1, 2, 3, 4, 6, 7, 8]].min() > 1e3 * value[[0, 5]].max()


def test_the_step_is_smooth_and_falls_from_one_to_zero():
    t = torch.linspace(-0.5, 1.5, 2001, dtype=torch.float64)
    value = step_down(t)
    assert (value[t <= 0] == 1).all() and (value[t >= 1] == 0).all() and (value.diff() <= 0).all()
    torch.testing.assert_close(value + step_down(1 - t), torch.ones_like(t))
    assert value.diff().diff().abs().max() < 1e-4


def test_positions_beyond_the_context_read_the_last():
    value, _ = values(build(), [CONTEXT - 1, CONTEXT, 10**9])
    assert (value[0] == value[0, 0]).all()
    assert build(context=7).table.shape == (7,)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential"])
def test_schedules_go_from_first_to_last(schedule):
    options = PrimeBumpOptions(epsilon=(0.4, 0.02), schedule=schedule)
    middle = {"cosine": 0.21, "linear": 0.21, "exponential": math.sqrt(0.4 * 0.02)}[schedule]
    assert scheduled(options, 0.0) == pytest.approx(0.4) and scheduled(options, 1.0) == pytest.approx(0.02)
    assert scheduled(options, 0.5) == pytest.approx(middle)
    quarter = {"cosine": 0.4 - 0.38 * (1 - math.sqrt(0.5)) / 2, "linear": 0.305, "exponential": 0.4 * 0.05**0.25}
    assert scheduled(options, 0.25) == pytest.approx(quarter[schedule])


def test_epsilon_follows_the_run_and_is_saved_with_the_weights():
    module, positions = build(epsilon=[0.4, 0.02], schedule="linear"), list(range(CONTEXT))
    before, _ = values(module, positions)
    module.update_statistics({}, 1e-4)
    assert torch.equal(values(module, positions)[0], before), "less than one per cent is no change"
    module.update_statistics({}, 0.5)
    assert module.epsilon.item() == pytest.approx(0.21)
    expected = 0.1 * written_out(CONTEXT, 0.21, 3)
    torch.testing.assert_close(values(module, positions)[0][0, :, 0], expected, rtol=1e-5, atol=1e-6)
    fresh = build(epsilon=[0.4, 0.02], schedule="linear")
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(values(fresh, positions)[0], values(module, positions)[0])
    module.update_statistics({}, 1.0)
    assert module.epsilon.item() == pytest.approx(0.02)


def test_shuffling_keeps_weights_and_centres_but_not_their_combination():
    from muse_prime_bump.bumps import controlled

    powers = prime_powers(5.0, 3)
    weight = weights(powers, 0.05)
    centre, same = controlled("shuffled", powers, weight, 1)
    assert torch.equal(centre.sort().values, powers.centre.sort().values) and torch.equal(same, weight)
    assert (centre != powers.centre).double().mean() > 0.9
    assert not torch.equal(centre, controlled("shuffled", powers, weight, 2)[0])


def test_gaussian_bumps_have_equal_norms_with_the_energy_of_the_primes():
    from muse_prime_bump.bumps import controlled

    powers = prime_powers(5.0, 3)
    weight = weights(powers, 0.05)
    centre, equal = controlled("gaussian", powers, weight, 1)
    assert equal.unique().numel() == 1
    torch.testing.assert_close(equal.square().sum(), weight.square().sum())
    assert 0 <= centre.min() and centre.max() <= powers.centre.max() and centre.unique().numel() == len(centre)


@pytest.mark.parametrize("bumps", ["shuffled", "gaussian"])
def test_controls_are_as_large_but_different(bumps):
    control, primes = build(bumps=bumps), build()
    torch.testing.assert_close(control.table.square().mean(), torch.ones((), dtype=torch.float64), rtol=1e-5, atol=0)
    assert (control.table - primes.table).abs().max() > 0.1


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.1, 2.0), (0.1, math.nan)])
def test_impossible_widths_are_named(bounds):
    with pytest.raises(ValueError, match="epsilon must be two widths"):
        PrimeBumpOptions(epsilon=bounds)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(24, 40), (12, 4, 6)])
def test_singular_values_are_those_of_the_primes(epsilon, shape):
    made = build_component("initializer", "prime-bump", {"epsilon": epsilon})
    replaced = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    filled = made(replaced, role="matrix", generator=torch.Generator().manual_seed(0))
    primes = lowest_primes(min(shape[0], filled[0].numel())).double()
    expected = (primes.log() * primes ** -(0.5 + epsilon)).sort(descending=True).values
    found = torch.linalg.svdvals(filled.flatten(1).double())
    torch.testing.assert_close(found / found[0], expected / expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(filled.norm(), replaced.norm(), rtol=1e-5, atol=0)


def test_random_integers_make_another_spectrum():
    replaced, spectra = torch.ones(64, 64), []
    for integers in ("primes", "random"):
        made = build_component("initializer", "prime-bump", {"integers": integers})
        spectra.append(torch.linalg.svdvals(made(replaced, role="matrix", generator=torch.Generator().manual_seed(0))))
    assert (spectra[0] - spectra[1]).abs().max() > 1e-3
    assert PrimeBumpInitializerOptions().integers == "primes"
