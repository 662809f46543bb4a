"""Fast weights over the absolute period grid: splits, resets, sums, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from muse_core.contracts import Tokens
from muse_core.fast_weights import FEWEST_AT_ONCE, Writes, by_period, combined, stretches
from muse_kernels.torch.fast_weights import fast_weights

BATCH, HEADS, KEY, VALUE = 3, 2, 4, 5
EXACT = 1e-10


class Mixing:
    """A filter that uses everything it is given and remembers how often it was asked; ``seen`` keeps the arguments."""

    def __init__(self):
        self.seen = []

    def __call__(self, before, after, period, state):
        self.seen.append((before, after, period, state))
        times = torch.zeros_like(period.log_decay) if state is None else state["times"]
        times = times.masked_fill(period.reset[:, None], 0.0) + 1
        share = torch.sigmoid(period.log_decay + 10 * period.write_scale + times)[..., None, None]
        return share * after + 0.3 * before, {"times": times}, {"share": share.mean(), "times_max": times.max()}


def make_writes(length, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(BATCH, length, HEADS, *shape, generator=generator, dtype=torch.float64)

    return Writes(normal(KEY), normal(KEY) / 2, normal(VALUE), -normal().abs() / 4, torch.sigmoid(normal()))


def make_resets(length):
    resets = torch.zeros(BATCH, length, dtype=torch.bool)
    for row, token in ((0, 0), (1, length // 2), (1, length // 2 + 1), (2, length - 1), (2, 4), (2, 5)):
        resets[row, min(token, length - 1)] = True
    return resets


def run(cuts, length, *, period, offset=0, resets=None, rule="delta", filters=None):
    """(output, before, state) of pieces between the cuts, with the state carried."""
    writes, state, outputs, befores = make_writes(length), None, [], []
    filters = [("mixing", Mixing()), ("again", Mixing())] if filters is None else filters
    for start, stop in zip([0, *cuts], [*cuts, length]):
        tokens = Tokens(
            torch.zeros(BATCH, stop - start), (offset + start) % period,
            None if resets is None else resets[:, start:stop],
        )  # fmt: skip
        part = Writes(*(x[:, start:stop] for x in writes))
        reading = by_period(fast_weights, filters, part, state, tokens, rule=rule, period=period, read_before=True)
        state = reading.state
        outputs.append(reading.output)
        befores.append(reading.before)
    return torch.cat(outputs, 1), torch.cat(befores, 1), state


def assert_same(actual, expected):
    left, right = (pytree.tree_flatten(side) for side in (actual, expected))
    assert left[1] == right[1]
    for a, b in zip(left[0], right[0]):
        torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 29),
    period=st.integers(1, 8),
    offset=st.integers(0, 40),
    cuts=st.sets(st.integers(1, 28)),
    documents=st.booleans(),
    rule=st.sampled_from(["hebbian", "delta"]),
    filtered=st.booleans(),
)
def test_any_split_of_a_stream_gives_the_whole(length, period, offset, cuts, documents, rule, filtered):
    given_filters = None if filtered else []
    settings_ = {
        "period": period, "offset": offset, "rule": rule, "filters": given_filters,
        "resets": make_resets(length) if documents else None,
    }  # fmt: skip
    whole = run([], length, **settings_)
    assert_same(run(sorted(c for c in cuts if c < length), length, **settings_), whole)
    assert_same(run(range(1, length), length, **settings_), whole)


@given(offset=st.integers(0, 50), length=st.integers(0, 90), period=st.integers(1, 20))
def test_stretches_tile_the_tokens_and_end_on_the_grid(offset, length, period):
    cut = list(stretches(offset, length, period))
    assert [token for start, stop, _ in cut for token in range(start, stop)] == list(range(length))
    ends = [t + 1 for t in range(length) if (offset + t + 1) % period == 0]
    assert [stop - period * back for _, stop, ended in cut for back in reversed(range(ended))] == ends
    together = [ended for _, _, ended in cut if ended > 1]
    assert all(ended >= FEWEST_AT_ONCE for ended in together) and len(together) <= 1
    if not together:
        assert sum(stop - start == period for start, stop, _ in cut) < FEWEST_AT_ONCE + (offset % period == 0)


def test_a_period_carries_the_sums_of_its_definition():
    """log_decay = Σ g and write_scale = Σ e^{2(c_end − c_i)} β² ‖k‖² ‖v‖² / (K M), from the latest reset on."""
    length, period = 12, 6
    resets = torch.zeros(BATCH, length, dtype=torch.bool)
    resets[1, 8] = True
    mixing = Mixing()
    run([7], length, period=period, resets=resets, filters=[("mixing", mixing)])
    writes = make_writes(length)
    assert len(mixing.seen) == 2
    for row, start in ((0, 6), (1, 8), (2, 6)):
        before, _, ended, _ = mixing.seen[1]
        g = writes.log_decay[row, start:]
        later = torch.stack([g[i + 1 :].sum(0) for i in range(len(g))])
        square = [x[row, start:].square().sum(-1) for x in (writes.key, writes.value)]
        scale = ((2 * later).exp() * writes.rate[row, start:].square() * square[0] * square[1]).sum(0) / (KEY * VALUE)
        torch.testing.assert_close(ended.log_decay[row], g.sum(0), rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(ended.write_scale[row], scale, rtol=EXACT, atol=EXACT)
        assert ended.reset[row] == (row == 1)
        assert before[row].any() == (row != 1)


def test_after_continues_from_what_the_filter_returned():
    """Between two periods W evolves as the rule says, from the filtered weights."""
    mixing = Mixing()
    run([], 12, period=6, rule="hebbian", filters=[("mixing", mixing)])
    before, after, ended, _ = mixing.seen[1]
    first_before, first_after, first, _ = mixing.seen[0]
    filtered, _, _ = Mixing()(first_before, first_after, first, None)
    torch.testing.assert_close(before, filtered, rtol=EXACT, atol=EXACT)
    writes = Writes(*(x[:, 6:] for x in make_writes(12)))
    added = fast_weights(*writes, rule="hebbian")[1]
    torch.testing.assert_close(after, ended.log_decay.exp()[..., None, None] * before + added, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("rule", ["hebbian", "delta"])
def test_gradients_of_many_periods_at_once_are_those_of_one_token_after_another(rule):
    length, period, offset = 22, 2, 1
    resets = make_resets(length)
    gradients = []
    for step in (length, 1):
        leaves = [x.requires_grad_() for x in make_writes(length)]
        writes, state, total = Writes(*leaves), None, 0.0
        for start in range(0, length, step):
            part = slice(start, start + step)
            tokens = Tokens(torch.zeros(BATCH, step), (offset + start) % period, resets[:, part])
            reading = by_period(
                fast_weights, [("mixing", Mixing())], Writes(*(x[:, part] for x in writes)), state, tokens,
                rule=rule, period=period, read_before=True,
            )  # fmt: skip
            state = reading.state
            total = total + reading.output.sin().sum() + reading.before.cos().sum()
        gradients.append(torch.autograd.grad(total + state["weights"].square().sum(), leaves))
    for together, stepwise in zip(*gradients):
        assert together.abs().max() > 1e-3
        torch.testing.assert_close(together, stepwise, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("rule", "calls"), [("hebbian", 1), ("delta", 2)])
def test_the_number_of_kernel_calls_does_not_grow_with_that_of_the_periods(rule, calls):
    made = []

    def loss_mask(*arguments, **options):
        made.append(options)
        return fast_weights(*arguments, **options)

    tokens = Tokens(torch.zeros(BATCH, 60))
    by_period(loss_mask, [("mixing", Mixing())], make_writes(60), None, tokens, rule=rule, period=3)
    assert len(made) == calls


def test_without_filters_the_kernel_runs_once_and_only_weights_are_carried():
    calls = []

    def loss_mask(*arguments, **options):
        calls.append(options)
        return fast_weights(*arguments, **options)

    tokens = Tokens(torch.zeros(BATCH, 50))
    reading = by_period(loss_mask, [], make_writes(50), None, tokens, rule="hebbian", period=4)
    assert len(calls) == 1
    assert set(reading.state) == {"weights"}
    assert reading.before is None and reading.metrics == {}


def test_measures_of_several_periods_are_reduced_by_their_suffix():
    tokens = Tokens(torch.zeros(BATCH, 15))
    mixing = Mixing()
    reading = by_period(
        fast_weights, [("mixing", mixing)], make_writes(15), None, tokens, rule="hebbian", period=5
    )
    metrics = reading.metrics
    assert metrics["mixing/times_max"] == 3
    shares = [Mixing()(*seen)[2]["share"] for seen in mixing.seen]
    torch.testing.assert_close(metrics["mixing/share"], torch.stack(shares).mean())
    assert not math.isclose(shares[0], shares[1])


def test_padding_neither_decays_nor_writes_nor_starts_documents():
    length, lengths = 9, (9, 0, 4)
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    resets = torch.zeros(BATCH, length, dtype=torch.bool)
    resets[2, 6] = resets[1, 3] = True
    writes, initial = make_writes(length), {"weights": torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)}
    tokens = Tokens(torch.zeros(BATCH, length), 0, resets, valid)
    padded = by_period(fast_weights, [], writes, initial, tokens, rule="hebbian", period=4)
    for row, real in enumerate(lengths):
        expected = initial["weights"][row : row + 1]
        if real:
            part = Writes(*(x[row : row + 1, :real] for x in writes))
            expected = fast_weights(*part, initial=expected)[1]
        torch.testing.assert_close(padded.state["weights"][row : row + 1], expected, rtol=EXACT, atol=EXACT)


def test_ragged_rows_are_refused_beside_filters():
    tokens = Tokens(torch.zeros(BATCH, 5), 0, None, torch.ones(BATCH, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="right-padded rows"):
        by_period(fast_weights, [("mixing", Mixing())], make_writes(5), None, tokens, rule="hebbian", period=4)


def test_a_suffix_says_how_measures_of_periods_are_made_one():
    periods = [{name: torch.tensor(value + place) for place, name in enumerate(("share", "a_sum", "a_min", "a_max"))}
               for value in (1.0, 5.0, 3.0)]
    found = {name: value.item() for name, value in combined(periods).items()}
    assert found == {"share": 3.0, "a_sum": 12.0, "a_min": 3.0, "a_max": 8.0} and combined([]) == {}
