"""What the hebbian memory computes: its definition token by token, its energy, its forgetting."""

import pytest
import torch
from muse_fast_weights.layer import Dynamics, _measures
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.model.signals import regrouped
from muse_core.testing import build_component

WIDTH, HEADS, KEY, VALUE = 12, 2, 4, 3
PLAIN = {"heads": HEADS, "key_size": KEY, "value_size": VALUE, "convolution": 0, "output_norm": False, "gate": False}
RULES = ["hebbian", "delta"]


def make_layer(**options):
    layer = build_component("memory layer", "fast-weights", PLAIN | options, width=WIDTH, dtype="float64").double()
    with torch.no_grad():
        layer.dynamics.rate.weight.mul_(4)
    return layer


def make_input(length, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator)


def tokens_of(x, start=0, resets=None):
    return Tokens(torch.arange(start, start + x.shape[1]).expand(x.shape[0], -1), 0, resets)


def parts(layer, x):
    """q, k (unit), v, g, β of every token, written out: (B, N, H, …)."""
    query, key, value = (linear(x).unflatten(-1, (HEADS, -1)) for linear in (layer.query, layer.key, layer.value))
    log_decay = -F.softplus(layer.dynamics.decay(x)) - layer.dynamics.base_decay
    rate = torch.sigmoid(layer.dynamics.rate(x))
    return query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True), value, log_decay, rate


def test_a_decay_that_is_a_signal_is_added_to_the_base_decay():
    layer = Dynamics(
        WIDTH, HEADS, torch.Generator().manual_seed(0), initial_decay=(0.01, 0.1), base_decay=0.25, initial_rate=0.5,
        replaced=None, own_decay=False, most_rate=2.0,
    ).double()
    x, decay = make_input(5), torch.rand(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_decay, rate = layer(x, decay)
    torch.testing.assert_close(log_decay, -(0.25 + decay.unflatten(-1, (HEADS, 2)).mean(-1)))
    torch.testing.assert_close(rate, 2 * torch.sigmoid(layer.rate(x)))


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_it_is_the_rule_written_out(rule):
    """hebbian: W ← e^g W + β k vᵀ. delta: W ← e^g (I − β k kᵀ) W + β k vᵀ. Read after the write; signal before."""
    layer, x = make_layer(rule=rule, base_decay=0.2), make_input(17)
    step = layer(x, None, {}, tokens_of(x))
    query, key, value, log_decay, rate = parts(layer, x)
    weights, identity = torch.zeros(2, HEADS, KEY, VALUE, dtype=torch.float64), torch.eye(KEY, dtype=torch.float64)
    for t in range(17):
        before = torch.einsum("bhkm,bhk->bhm", weights, query[:, t])
        torch.testing.assert_close(step.signals["memory_before"][:, t], before, rtol=1e-10, atol=1e-12)
        outer = torch.einsum("bhk,bhl->bhkl", key[:, t], key[:, t])
        kept = identity - rate[:, t, :, None, None] * outer if rule == "delta" else identity
        added = torch.einsum("bh,bhk,bhm->bhkm", rate[:, t], key[:, t], value[:, t])
        weights = log_decay[:, t].exp()[..., None, None] * kept @ weights + added
        after = torch.einsum("bhkm,bhk->bhm", weights, query[:, t])
        torch.testing.assert_close(step.update[:, t], layer.output(after.flatten(1)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.state["memory"]["weights"], weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_energy_obeys_the_driven_law(rule):
    """‖W_t‖ ≤ e^{g_t}‖W_{t−1}‖ + β_t‖k_t‖‖v_t‖, which the delta rule's contraction keeps as well."""
    layer, x, state = make_layer(rule=rule), make_input(40), None
    _, _, value, log_decay, rate = parts(layer, x)
    norm = torch.zeros(2, HEADS, dtype=torch.float64)
    for t in range(40):
        step = layer(x[:, t : t + 1], state, {}, tokens_of(x[:, t : t + 1], t))
        state = step.state
        bound = log_decay[:, t].exp() * norm + rate[:, t] * value[:, t].norm(dim=-1)
        norm = state["memory"]["weights"].flatten(2).norm(dim=-1)
        assert (norm <= bound * (1 + 1e-12)).all()
        torch.testing.assert_close(step.metrics["energy"], norm.square().mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_an_undriven_memory_loses_energy(rule):
    layer, x = make_layer(rule=rule), make_input(10)
    state = layer(x, None, {}, tokens_of(x)).state
    layer.value.weight.zero_()
    energies = [state["memory"]["weights"].square().sum((-1, -2))]
    for t in range(10):
        state = layer(x[:, t : t + 1], state, {}, tokens_of(x[:, t : t + 1], t)).state
        energies.append(state["memory"]["weights"].square().sum((-1, -2)))
    assert all((later < earlier).all() for earlier, later in zip(energies, energies[1:]))


@torch.no_grad()
def test_a_document_starts_with_an_empty_memory():
    layer, x = make_layer(convolution=4), make_input(9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, 5] = True
    step = layer(x, None, {}, tokens_of(x, resets=resets))
    assert not step.signals["memory_before"][0, 5].any()
    assert step.signals["memory_before"][1, 5].any()
    alone = layer(x[:1, 5:], None, {}, tokens_of(x[:1, 5:]))
    torch.testing.assert_close(step.update[:1, 5:], alone.update, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_padding_leaves_the_state_of_the_last_valid_token():
    """Rows of 7, 0 and 1 tokens in one padded call go on as if each had been read alone."""
    layer, x, lengths = make_layer(convolution=4), make_input(7, batch=3), (7, 0, 1)
    start = layer(make_input(5, batch=3, seed=1), None, {}, tokens_of(x[:, :5])).state
    valid = torch.arange(7) < torch.tensor(lengths)[:, None]
    resets = torch.zeros(3, 7, dtype=torch.bool)
    resets[0, 6] = resets[1, 3] = True
    padded = layer(x, start, {}, tokens_of(x, resets=resets)._replace(valid=valid))
    following = make_input(3, batch=3, seed=2)
    after = layer(following, padded.state, {}, tokens_of(following, 7)).update
    for row, length in enumerate(lengths):
        state = {
            "memory": {"weights": start["memory"]["weights"][row : row + 1]},
            "convolution": start["convolution"][row : row + 1],
        }
        if length:
            alone = x[row : row + 1, :length]
            state = layer(alone, state, {}, tokens_of(alone, resets=resets[row : row + 1, :length])).state
        one = following[row : row + 1]
        expected = layer(one, state, {}, tokens_of(one, 7)).update
        torch.testing.assert_close(after[row : row + 1], expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_heads_start_log_spaced_between_their_bounds():
    layer = make_layer(heads=5, key_size=10, initial_decay=(0.0005, 0.2))
    x = torch.zeros(1, 3, WIDTH, dtype=torch.float64)
    step = layer(x, None, {}, tokens_of(x))
    log_decay, rate = layer.dynamics(x, None)
    expected = 0.0005 * 400 ** (torch.arange(5, dtype=torch.float64) / 4)
    torch.testing.assert_close(-log_decay[0, 0], expected, rtol=1e-5, atol=0)
    assert step.metrics["decay_min"].item() == pytest.approx(0.0005, rel=1e-5)
    assert step.metrics["decay_max"].item() == pytest.approx(0.2, rel=1e-5)
    torch.testing.assert_close(rate[0, 0], (10 * expected).clamp_max(0.5), rtol=1e-5, atol=0)
    assert (make_layer(rule="hebbian").dynamics(x, None)[1] == 0.5).all()
    faster = make_layer(heads=5, key_size=10, initial_decay=(0.0005, 0.2), base_decay=0.01).dynamics(x, None)[1]
    torch.testing.assert_close(faster[0, 0], (10 * (expected + 0.01)).clamp_max(0.5), rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.9])
def test_writes_start_at_their_configured_rate(rate):
    layer = make_layer(heads=5, initial_rate=rate)
    _, found = layer.dynamics(torch.zeros(1, 3, WIDTH, dtype=torch.float64), None)
    torch.testing.assert_close(found, torch.full_like(found, rate), rtol=1e-6, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_later_writes_of_the_delta_rule_erase_in_proportion_to_their_rate(rate):
    """Of an answer kᵀW, n later tokens with independent keys leave the share (1 − β/K)ⁿ on average: why recall among
    many tokens starts with a low rate."""
    length, rows = 4 * WIDTH, 64
    plain = {"heads": 1, "key_size": WIDTH, "initial_rate": rate, "initial_decay": [1e-9, 1e-9]}
    layer = make_layer(**plain)
    layer.dynamics.rate.weight.zero_()
    layer.dynamics.decay.weight.zero_()
    torch.nn.init.eye_(layer.key.weight)
    first, later = make_input(1, rows, seed=1), make_input(length, rows, seed=2)
    written = layer(first, None, {}, tokens_of(first)).state
    carried = layer(later, written, {}, tokens_of(later, 1)).state["memory"]["weights"]
    alone = layer(later, None, {}, tokens_of(later, 1)).state["memory"]["weights"]
    key = F.normalize(layer.key(first[:, 0]), dim=-1)

    def answer(weights):
        return torch.einsum("bk,bkm->bm", key, weights[:, 0])

    value = answer(written["memory"]["weights"])
    left = (answer(carried - alone) * value).sum() / value.square().sum()
    assert left.item() == pytest.approx((1 - rate / WIDTH) ** length, abs=0.05)


def test_the_default_has_a_head_that_remembers_four_thousand_tokens():
    """The first token's influence on the last output at N = 4096, over that of the last token."""
    layer = build_component("memory layer", "fast-weights", {"rule": "hebbian", "heads": 2}, width=WIDTH)
    x = make_input(4096, batch=1).float().requires_grad_()
    layer(x, None, {}, tokens_of(x)).update[:, -1].square().sum().backward()
    norms = x.grad[0].norm(dim=-1)
    assert norms[0] / norms[-1] > 1e-5


@torch.no_grad()
def test_rates_stay_between_zero_and_one_and_log_decays_below_zero():
    layer = make_layer(base_decay=0.03)
    log_decay, rate = layer.dynamics(1e3 * make_input(50), None)
    assert rate.min() >= 0 and rate.max() <= 1 and rate.std() > 0.3
    assert log_decay.max() <= -0.03 and log_decay.min() < -1


@pytest.mark.parametrize("given", [1, 2, 6])
@torch.no_grad()
def test_a_decay_signal_is_averaged_over_equal_groups(given):
    layer = build_component(
        "memory layer", "fast-weights", PLAIN | {"decay": "signal"}, width=WIDTH, signals={"decay": (given,)}
    ).double()
    gamma, x = torch.rand(2, 5, given, dtype=torch.float64), torch.zeros(2, 5, WIDTH, dtype=torch.float64)
    log_decay, rate = layer.dynamics(x, gamma)
    assert (layer.dynamics(x, -gamma)[0] == 0).all(), "a memory does not grow"
    assert (rate == 0.5).all()  # no Γ of its own to hold it to
    expected = gamma.expand(2, 5, 2) if given < 2 else gamma.view(2, 5, 2, given // 2).mean(-1)
    torch.testing.assert_close(log_decay, -expected)
    assert all("decay" not in name for name, _ in layer.named_parameters())


def test_slow_learning_parameters_stand_under_dynamics():
    names = {name for name, _ in make_layer().named_parameters() if name.startswith("dynamics.")}
    assert names == {f"dynamics.{part}.{kind}" for part in ("decay", "rate") for kind in ("weight", "bias")}


@torch.no_grad()
def test_a_product_decay_is_amplitude_times_softplus():
    """g = −(base_decay + A softplus(w·x + c)), with A in (0, 16) and softplus(c) in (0.001, 0.1) at the start."""
    layer, x = make_layer(decay_form="product", base_decay=0.2), make_input(9)
    dynamics = layer.dynamics
    log_decay, _ = dynamics(x, None)
    expected = -0.2 - dynamics.log_amplitude.exp() * F.softplus(dynamics.decay(x))
    torch.testing.assert_close(log_decay, expected, rtol=1e-10, atol=1e-12)
    amplitude, step = dynamics.log_amplitude.exp(), F.softplus(dynamics.decay.bias)
    assert (amplitude > 0).all() and (amplitude < 16).all()
    assert (step > 0.001).all() and (step < 0.1).all()


@torch.no_grad()
def test_the_largest_rate_scales_and_keeps_the_first_rate():
    plain, wide = make_layer(initial_rate=0.4), make_layer(initial_rate=0.4, most_rate=2.0)
    for layer in (plain, wide):
        layer.dynamics.rate.weight.zero_()
    x = make_input(5)
    torch.testing.assert_close(plain.dynamics(x, None)[1], wide.dynamics(x, None)[1], rtol=1e-6, atol=1e-7)
    wide.dynamics.rate.bias.fill_(50.0)
    assert wide.dynamics(x, None)[1].max() == pytest.approx(2.0)


@pytest.mark.parametrize("rule", ["hebbian", "delta"])
@pytest.mark.parametrize("most", [1e-3, 0.5, 0.8])
@torch.no_grad()
def test_rates_with_a_small_largest_one_start_at_its_half_at_most(rule, most):
    layer = make_layer(rule=rule, most_rate=most, initial_decay=(0.3, 3.0))
    layer.dynamics.rate.weight.zero_()
    rates = layer.dynamics(make_input(5), None)[1]
    assert rates.min() > 0 and rates.max() == pytest.approx(min(most / 2, 0.5))


@pytest.mark.parametrize("kind", ["identity", "uniform", "the default"])
def test_first_taps(kind):
    given, kind = ({}, "uniform") if kind == "the default" else ({"taps": kind}, kind)
    layer = build_component("memory layer", "fast-weights", {"heads": 4} | given, width=64)
    taps = torch.stack(list(layer.convolution.taps)).detach()
    assert taps[0].mean() == pytest.approx(1.0 if kind == "identity" else 0.0, abs=0.1)
    if kind == "uniform":
        assert taps.abs().max() <= 0.5 and taps[1:].std() == pytest.approx(0.5 / 3**0.5, rel=0.1)


def as_pairs(x):
    """(…, K // 2) complex: the entries p and K // 2 + p of x (…, K)."""
    return torch.view_as_complex(torch.stack(x[..., : 2 * (KEY // 2)].chunk(2, -1), -1))


@pytest.mark.parametrize("kind", ["positions", "spectral-shift"])
@torch.no_grad()
def test_a_rotation_makes_answers_depend_on_the_difference_of_angles(kind):
    """q·k of two turned vectors depends on the difference of their angles, so a common angle changes nothing."""
    signals = {"spectral_shift": (4,)} if kind == "spectral-shift" else None
    layer = build_component(
        "memory layer", "fast-weights", PLAIN | {"rotation": kind}, width=WIDTH, dtype="float64", signals=signals
    ).double()
    x = make_input(9)
    shift = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = {} if signals is None else {"spectral_shift": shift}
    moved = {} if signals is None else {"spectral_shift": shift + 0.7}
    first = layer(x, None, given, tokens_of(x)).update
    same = layer(x, None, moved, tokens_of(x, start=5)).update
    torch.testing.assert_close(first, same, rtol=1e-9, atol=1e-11)
    plain = build_component("memory layer", "fast-weights", PLAIN, width=WIDTH, dtype="float64").double()
    assert (plain(x, None, {}, tokens_of(x)).update - first).abs().max() > 1e-3
    query, key = (linear(x).unflatten(-1, (HEADS, KEY)) for linear in (layer.query, layer.key))
    by_head = None if signals is None else regrouped(shift, HEADS, "spectral_shift")
    turned = layer.rotation(query, key, x, by_head, None, tokens_of(x))[0]
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
    angle = torch.arange(9.0)[None, :, None].double() if by_head is None else torch.pi * by_head
    frequency = torch.logspace(0, -3, KEY // 2).double()  # from 1 to a thousandth
    expected = as_pairs(query) * torch.polar(torch.ones(()).double(), angle[..., None] * frequency)
    torch.testing.assert_close(as_pairs(turned), expected.expand_as(as_pairs(turned)), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_potential_turns_keys_by_its_sum_since_the_document_started():
    """The angle of pair p is its frequency times the sum."""
    layer = build_component(
        "memory layer", "fast-weights", PLAIN | {"rotation": "potential"}, width=WIDTH, dtype="float64"
    ).double()
    x = make_input(9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[:, 4] = True
    given = tokens_of(x)._replace(resets=resets)
    query = layer.query(x).unflatten(-1, (HEADS, KEY))
    found, _, after = layer.rotation(query, query, x, None, None, given)
    potential = layer.rotation.dynamics.potential(x)
    angle = torch.cat((potential[:, :4].cumsum(1), potential[:, 4:].cumsum(1)), 1)[..., None]
    angle = angle * layer.rotation.dynamics.frequency
    expected = as_pairs(query) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(as_pairs(found), expected)
    torch.testing.assert_close(after, angle[:, -1].remainder(2 * torch.pi))
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    ragged = layer.rotation(query, query, x, None, None, given._replace(valid=valid))[2]
    torch.testing.assert_close(ragged, torch.stack((angle[0, -1], angle[1, 5])).remainder(2 * torch.pi))


@torch.no_grad()
def test_a_second_write_has_a_convolution_and_silu_as_the_first():
    options = PLAIN | {"writes": 2, "rule": "delta", "convolution": 3}
    second = build_component("memory layer", "fast-weights", options, width=WIDTH, dtype="float64").double().second
    x = make_input(6)
    written, _ = second(x, x, None, tokens_of(x))
    both = F.silu(second.convolution(torch.cat((second.key(x), second.value(x)), -1), None, tokens_of(x))[0])
    key, value = (part.unflatten(-1, (HEADS, -1)) for part in both.split((HEADS * KEY, HEADS * VALUE), -1))
    torch.testing.assert_close(written.key, F.normalize(key, dim=-1))
    torch.testing.assert_close(written.value, value)


def test_measures_are_means_over_heads_and_the_tokens_that_exist():
    decay, rate = (torch.rand(2, 5, HEADS, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1))
    decay[1, 3], decay[1, 4] = 0.0, 2.0  # of padding, where rows are ragged
    valid, weights = torch.arange(5) < torch.tensor([[5], [2]]), torch.ones(2, HEADS, KEY, VALUE).double()
    weights[1] = 3.0
    for some in (None, valid):
        found = _measures(weights, decay, rate, some)
        of = slice(None) if some is None else some
        torch.testing.assert_close(found["decay"], decay[of].mean())
        torch.testing.assert_close(found["rate"], rate[of].mean())
        assert (found["decay_min"], found["decay_max"]) == (decay[of].min(), decay[of].max())
        assert found["energy"] == 5 * KEY * VALUE


@torch.no_grad()
def test_two_writes_multiply_two_maps():
    """W_t = (I − β₂ k₂ k₂ᵀ) (e^{g} (I − β₁ k₁ k₁ᵀ) W_{t−1} + β₁ k₁ v₁ᵀ) + β₂ k₂ v₂ᵀ, token by token."""
    options = PLAIN | {"writes": 2, "rule": "delta"}
    layer = build_component("memory layer", "fast-weights", options, width=WIDTH, dtype="float64").double()
    x = make_input(6)
    weights, reads = torch.zeros(2, HEADS, KEY, layer.value_width, dtype=torch.float64), []
    project = [layer.query, layer.key, layer.value, layer.second.key, layer.second.value]
    query, key, value, other_key, other_value = (one(x).unflatten(-1, (HEADS, -1)) for one in project)
    query, key, other_key = (F.normalize(one, dim=-1) for one in (query, key, other_key))
    decay, rate = layer.dynamics(x, None)
    other_rate = layer.second.dynamics(x)
    for t in range(6):
        weights = decay[:, t].exp()[..., None, None] * weights
        for k, v, beta in ((key, value, rate), (other_key, other_value, other_rate)):
            k, v, beta = k[:, t], v[:, t], beta[:, t, :, None, None]
            new = v - torch.einsum("bhk,bhkm->bhm", k, weights)
            weights = weights + beta * k[..., None] * new[..., None, :]
        reads.append(torch.einsum("bhk,bhkm->bhm", query[:, t], weights))
    read = torch.stack(reads, 1)
    found = layer(x, None, {}, tokens_of(x))
    torch.testing.assert_close(found.state["memory"]["weights"], weights)
    torch.testing.assert_close(found.update, layer.output(read.flatten(2)))


@torch.no_grad()
@pytest.mark.parametrize("writes", [1, 2])
def test_theta_scales_what_a_token_writes(writes):
    """β of a token, in either write, is its own times the mean (Γ + η) Im θ of the resolvent heads of its group."""
    signals = {"theta": (4, 2), "broadening": (4,)}
    own_strength = PLAIN | {"writes": writes}
    options = own_strength | {"strength": "theta"}
    layer = build_component("memory layer", "fast-weights", options, width=WIDTH, dtype="float64", signals=signals)
    layer, x = layer.double(), make_input(5)
    generator = torch.Generator().manual_seed(1)
    broadening = 0.1 + torch.rand(2, 5, 4, dtype=torch.float64, generator=generator)
    share = torch.rand(2, 5, 4, dtype=torch.float64, generator=generator)
    given = {"broadening": broadening, "theta": torch.stack((torch.randn(2, 5, 4), share / broadening), -1)}
    plain = build_component("memory layer", "fast-weights", own_strength, width=WIDTH, dtype="float64").double()
    plain.load_state_dict(layer.state_dict())
    own, shares = plain.dynamics.forward, share.unflatten(-1, (HEADS, 2)).mean(-1)
    plain.dynamics.forward = lambda *a: (own(*a)[0], own(*a)[1] * shares)
    if writes == 2:
        second = plain.second.dynamics.forward
        plain.second.dynamics.forward = lambda x: second(x) * shares
    torch.testing.assert_close(layer(x, None, given, tokens_of(x)).update, plain(x, None, {}, tokens_of(x)).update)
