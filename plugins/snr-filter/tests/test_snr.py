"""The snr filter against what theory says of noise, of repeated associations, and of its own bounds."""

import math

import pytest
import torch
from muse_snr_filter.filter import Snr
from muse_snr_filter.options import SnrOptions
from torch.nn import functional as F

from muse_core.contracts import Period

HEADS, KEY, VALUE, PERIOD = 2, 48, 40, 64


def make_filter(**options):
    return Snr(SnrOptions(**options), None)


def write(weights, key, value, *, decay, rate=0.7, reset=False):
    """Hebbian writes of one period (N, H, K), (N, H, M) on ``weights`` (H, K, M): after, and the period's sums."""
    tokens = key.shape[0]
    weight = rate * math.exp(-decay) ** torch.arange(tokens - 1, -1, -1, dtype=torch.float64)
    after = math.exp(-decay * tokens) * weights + torch.einsum("n,nhk,nhm->hkm", weight, key, value)
    scale = torch.einsum("n,nh,nh->h", weight**2, key.square().mean(-1), value.square().mean(-1))
    log_decay = torch.full((1, HEADS), -decay * tokens, dtype=torch.float64)
    return after[None], Period(log_decay, scale[None], torch.tensor([reset]))


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(PERIOD, HEADS, KEY, generator=generator, dtype=torch.float64)
    return F.normalize(key, dim=-1), torch.randn(PERIOD, HEADS, VALUE, generator=generator, dtype=torch.float64)


def noise_periods(filter_, periods, *, decay, apply):
    """The filter's results over periods of noise writes; ``apply``: whether its weights are carried on."""
    weights, state, found = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64), None, []
    for seed in range(periods):
        after, period = write(weights, *noise(seed), decay=decay)
        filtered, state, metrics = filter_(weights[None], after, period, state)
        weights = (filtered if apply else after)[0]
        found.append((after, filtered, metrics))
    return found


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_of_noise_the_share_of_a_normal_distribution_is_filtered(threshold):
    """erf(τ/√2), in the first period and, with σ carried through the decay, in every later one."""
    filter_ = make_filter(threshold=threshold)
    for _, _, metrics in noise_periods(filter_, 5, decay=0.01, apply=False):
        assert metrics["share_filtered"].item() == pytest.approx(math.erf(threshold / math.sqrt(2)), abs=0.02)
        assert metrics["signal_to_noise"].item() == pytest.approx(1.0, abs=0.05)


def test_without_the_carried_noise_the_share_would_be_wrong():
    """σ of the last period alone is too small by √(1 + e^{2Σg} + …), which this decay makes visible."""
    after, period = write(noise_periods(make_filter(), 4, decay=0.001, apply=False)[-1][0][0], *noise(9), decay=0.001)
    _, _, forgetful = make_filter()(after, after, period, None)
    assert forgetful["share_filtered"] < 0.8


def test_noise_fades_faster_and_an_association_survives():
    """One pair, written again and again among noise, keeps its share of the weights; the noise loses energy."""
    generator = torch.Generator().manual_seed(3)
    rare = torch.zeros(HEADS, KEY, dtype=torch.float64)
    rare[:, 7] = 1.0
    answer = torch.randn(HEADS, VALUE, generator=generator, dtype=torch.float64).sign() * 1.5
    plain = kept = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64)
    filter_, state = make_filter(), None
    for seed in range(6):
        key, value = noise(seed)
        key[::4], value[::4] = rare, answer
        plain = write(plain, key, value, decay=0.005)[0][0]
        after, period = write(kept, key, value, decay=0.005)
        filtered, state, _ = filter_(kept[None], after, period, state)
        kept = filtered[0]
    signal, rest = kept[:, 7], torch.cat((kept[:, :7], kept[:, 8:]), dim=1)
    plain_signal, plain_rest = plain[:, 7], torch.cat((plain[:, :7], plain[:, 8:]), dim=1)
    assert F.cosine_similarity(signal, answer, dim=-1).min() > 0.99
    assert (signal.abs().amin(-1) >= 0.99 * plain_signal.abs().amin(-1)).all()
    gain = (signal.norm() / rest.norm()) / (plain_signal.norm() / plain_rest.norm())
    assert gain > 1.3


def test_entries_below_fade_and_entries_above_are_boosted_within_the_largest():
    before = torch.tensor([[[[0.1, 2.0, -3.0, 4.0, 0.0]]]], dtype=torch.float64)
    after = torch.tensor([[[[0.2, 3.0, -3.5, 6.0, -1.9]]]], dtype=torch.float64)
    log_decay = torch.tensor([[math.log(0.5)]], dtype=torch.float64)
    period = Period(log_decay, torch.ones(1, 1, dtype=torch.float64), torch.tensor([False]))
    filtered, state, metrics = make_filter(threshold=2.0, gamma_boost=3.0, rate_boost=1.5)(before, after, period, None)
    expected = [0.2 * 0.25, 3.0 + 0.5 * (3.0 - 1.0), -3.5 + 0.5 * (-3.5 + 1.5), 6.0, -1.9 * 0.25]
    torch.testing.assert_close(filtered[0, 0, 0], torch.tensor(expected, dtype=torch.float64))
    assert metrics["share_filtered"] == pytest.approx(0.4)
    assert state["noise"].item() == 1.0


def test_no_entry_exceeds_what_its_head_held():
    for after, filtered, _ in noise_periods(make_filter(threshold=0.1, rate_boost=2.0), 20, decay=0.0, apply=True):
        assert (filtered.abs().amax((-1, -2)) <= after.abs().amax((-1, -2))).all()


def test_boosts_of_one_leave_the_weights_alone():
    for after, filtered, _ in noise_periods(make_filter(gamma_boost=1.0, rate_boost=1.0), 3, decay=0.1, apply=True):
        torch.testing.assert_close(filtered, after, rtol=0, atol=0)


def test_a_document_start_restarts_the_row():
    """After a reset a row is filtered as at the start of a stream, whatever the row's state was."""
    weights = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64)
    after, period = write(weights, *noise(1), decay=0.01)
    fresh = make_filter()(weights[None], after, period, None)
    started = period._replace(reset=torch.tensor([True, False]))
    started = started._replace(
        log_decay=started.log_decay.expand(2, -1), write_scale=started.write_scale.expand(2, -1)
    )
    state = {"noise": torch.full((2, HEADS), 5.0, dtype=torch.float64)}
    filtered, state, _ = make_filter()(weights.expand(2, -1, -1, -1), after.expand(2, -1, -1, -1), started, state)
    torch.testing.assert_close(filtered[0], fresh[0][0], rtol=0, atol=0)
    torch.testing.assert_close(state["noise"][0], fresh[1]["noise"][0], rtol=0, atol=0)
    assert (state["noise"][1] > 2 * state["noise"][0]).all()


def test_gradients_reach_both_weights_and_the_decay():
    weights = torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64)
    before, _ = write(weights, *noise(1), decay=0.01)
    after, period = write(before[0], *noise(2), decay=0.01)
    leaves = [x.detach().requires_grad_() for x in (before, after, period.log_decay)]
    filtered, _, _ = make_filter()(leaves[0], leaves[1], period._replace(log_decay=leaves[2]), None)
    for gradient in torch.autograd.grad(filtered.square().sum(), leaves):
        assert torch.isfinite(gradient).all() and gradient.any()


def test_a_head_that_never_wrote_stays_finite():
    zeros = torch.zeros(1, HEADS, KEY, VALUE)
    period = Period(torch.zeros(1, HEADS), torch.zeros(1, HEADS), torch.tensor([False]))
    filtered, _, metrics = make_filter()(zeros, zeros, period, None)
    assert not filtered.any()
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"gamma_boost": 0.5}, {"rate_boost": 2.5}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        SnrOptions(**wrong)
