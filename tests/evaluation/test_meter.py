"""The meter adds up what one large batch would have given."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from muse_core.contracts import Result
from muse_core.metrics.accumulator import MetricAccumulator, read, together

pieces = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 100), st.floats(-5, 5)), min_size=1, max_size=6
)


@given(pieces)
def test_losses_are_per_token_and_measures_reduce_by_their_suffix(pieces: list[tuple[int, float, float]]) -> None:
    accumulator = MetricAccumulator()
    for loss_mask, loss, measure in pieces:
        value = torch.tensor(measure, dtype=torch.float64)
        result = Result(
            torch.tensor(loss, dtype=torch.float64),
            {"cross_entropy": torch.tensor(loss, dtype=torch.float64)},
            {"a/x": value, "a/x_sum": value, "a/x_min": value, "a/x_max": value},
            None,
        )
        accumulator.add_result(result, torch.tensor(loss_mask))
    read = accumulator.read()
    tokens = sum(loss_mask for loss_mask, _, _ in pieces)
    metrics = [measure for _, _, measure in pieces]
    assert read["tokens"] == tokens
    assert abs(read["loss"] - sum(loss for _, loss, _ in pieces) / tokens) < 1e-9
    assert abs(read["a/x"] - sum(c * m for c, _, m in pieces) / tokens) < 1e-9
    assert abs(read["a/x_sum"] - sum(metrics)) < 1e-9
    assert read["a/x_min"] == min(metrics)
    assert read["a/x_max"] == max(metrics)


def test_numbers_of_the_whole_step_stand_as_they_are() -> None:
    accumulator = MetricAccumulator()
    accumulator.add_result(Result(torch.tensor(6.0), {}, {}, None), torch.tensor(3))
    packed = accumulator.packed().with_values({"gradient_norm": torch.tensor(2.5)})
    assert read(packed.numbers()) == {"tokens": 3.0, "total": 2.0, "gradient_norm": 2.5, "loss": 2.0}


def test_micro_batches_need_not_measure_the_same_or_in_one_type() -> None:
    accumulator = MetricAccumulator()
    first = {"a/x": torch.tensor(2.0), "a/n_sum": torch.tensor(3), "b/x_max": torch.tensor(7.0, dtype=torch.float64)}
    accumulator.add_result(Result(torch.tensor(6.0), {}, first, None), torch.tensor(2))
    second = {"a/n_sum": torch.tensor(4.0), "a/y": torch.tensor(5.0), "b/x_max": torch.tensor(8)}
    accumulator.add_result(Result(torch.tensor(2.0), {}, second, None), torch.tensor(6))
    found = accumulator.read()
    assert found == {
        "tokens": 8.0, "total": 1.0, "loss": 1.0, "a/x": 0.5, "a/y": 3.75, "a/n_sum": 7.0, "b/x_max": 8.0,
    }


def test_measures_that_only_some_micro_batches_have_are_combined_with_their_like() -> None:
    """Of several types, as layers give them; a token that no micro-batch counts divides nothing by zero."""
    accumulator = MetricAccumulator()
    for tokens, metrics in (
        (3, {"a/x": torch.tensor(2.0), "b/x_sum": torch.tensor(4), "b/x_max": torch.tensor(1.0).double()}),
        (1, {"c/x": torch.tensor(7.0), "b/x_sum": torch.tensor(5), "a/x": torch.tensor(6.0).bfloat16()}),
    ):
        result = Result(torch.tensor(4.0 * tokens), {"cross_entropy": torch.tensor(3.0 * tokens)}, metrics, None)
        accumulator.add_result(result, torch.tensor(tokens))
    found = accumulator.read()
    assert found["loss"] == found["cross_entropy"] == 3.0 and found["total"] == 4.0 and found["tokens"] == 4
    assert (found["a/x"], found["b/x_sum"], found["b/x_max"], found["c/x"]) == ((2 * 3 + 6) / 4, 9, 1, 7 / 4)
    nothing = MetricAccumulator()
    nothing.add_result(Result(torch.tensor(0.0), {}, {"a/x": torch.tensor(5.0)}, None), torch.tensor(0))
    assert nothing.read() == {"tokens": 0, "total": 0, "a/x": 0, "loss": 0}


def test_numbers_of_several_types_keep_their_order() -> None:
    values = [torch.tensor(1), torch.tensor(2.5), torch.tensor(True), torch.tensor([3.0]), torch.tensor(4)]
    assert together(values, torch.device("cpu")).tolist() == [1, 2.5, 1, 3, 4]
