"""The layer suite passes a right layer and catches every wrong one below."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.component import Component
from muse_core.contracts import LayerOutput
from muse_core.testing.layers import LayerSuite
from muse_core.testing.loose import registry_with


@attrs.frozen(kw_only=True)
class TraceOptions:
    """A leaky average of the stream."""

    gain: float = 1.0
    """Factor of the update."""

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        return {"trace": (width,)}


@attrs.frozen
class CarelessOptions(TraceOptions):
    size: int = 4


class Rate(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.logit = nn.Parameter(torch.linspace(-1, 1, width))


class Right(nn.Module):
    """a_t = k a_{t−1} + (1 − k) x_t token by token; wrong layers override one step of it."""

    def __init__(self, options, context):
        super().__init__()
        self.options, self.publish = options, context.publish
        self.dynamics = Rate(context.width)
        self.output = nn.Linear(context.width, context.width, bias=False)

    def forward(self, x, state, signals, tokens):
        dtype = torch.promote_types(x.dtype, torch.float32)
        average = x.new_zeros(x[:, 0].shape, dtype=dtype) if state is None else self.given(state)
        keep, averages = self.dynamics.logit.sigmoid().to(dtype), []
        for token in range(x.shape[1]):
            if tokens.resets is not None:
                average = self.reset(average, tokens.resets[:, token, None])
            written = keep * average + (1 - keep) * x[:, token].to(dtype)
            average = written if tokens.valid is None else self.padded(tokens.valid[:, token, None], written, average)
            averages.append(average)
        trace = torch.stack(averages, dim=1)
        update = self.options.gain * self.output(trace.to(x.dtype))
        return LayerOutput(self.changed(update, x), self.kept(average), self.told(trace))

    def given(self, state):
        return state["average"]

    def reset(self, average, starts):
        return average.masked_fill(starts, 0.0)

    def padded(self, valid, written, average):
        return torch.where(valid, written, average)

    def changed(self, update, x):
        return update

    def kept(self, average):
        return {"average": average}

    def told(self, trace):
        return {"trace": trace} if "trace" in self.publish else {}


class ChangesTheGivenState(Right):
    def given(self, state):
        return state["average"].mul_(0.5)


class SeesTheFuture(Right):
    def changed(self, update, x):
        return update + 1e-6 * x.mean(dim=1, keepdim=True)


class SeesTheFutureInTraining(SeesTheFuture):
    def changed(self, update, x):
        return super().changed(update, x) if self.training else update


class SeesOtherRows(Right):
    def changed(self, update, x):
        return update + 1e-6 * x.mean(dim=0, keepdim=True)


class PrefersTheFirstRow(Right):
    def changed(self, update, x):
        return torch.cat([2 * update[:1], update[1:]])


class SeesOtherRowsInTraining(SeesOtherRows):
    def changed(self, update, x):
        return super().changed(update, x) if self.training else update


class SeesAcrossAPeriodsEdge(Right):
    """Only the last token of a period of eight sees its successor, as a filter that acts too early would let it."""

    def changed(self, update, x):
        later = x.roll(-1, dims=1)
        last = (torch.arange(x.shape[1]) % 8 == 7)[:, None] & (torch.arange(x.shape[1]) < x.shape[1] - 1)[:, None]
        return update + 1e-6 * torch.where(last, later, 0)


class IgnoresTheStream(Right):
    def changed(self, update, x):
        return torch.ones_like(update)

    def told(self, trace):
        return {"trace": torch.ones_like(trace)} if "trace" in self.publish else {}


class ForgetsItsState(Right):
    def given(self, state):
        return torch.zeros_like(state["average"])


class ForgetsItsStateStepwise(Right):
    def forward(self, x, state, signals, tokens):
        return super().forward(x, None if x.shape[1] == 1 else state, signals, tokens)


class CutsTheGradientOfItsState(Right):
    def given(self, state):
        return state["average"].detach()


class IgnoresDocuments(Right):
    def reset(self, average, starts):
        return average


class IgnoresPadding(Right):
    def padded(self, valid, written, average):
        return written


class HasADeadParameter(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.unused = nn.Parameter(torch.ones(3))


class HasADeadBranch(Right):
    def changed(self, update, x):
        return 0.0 * update

    def told(self, trace):
        return {"trace": trace.detach()} if "trace" in self.publish else {}


class LiesAboutItsGradient(Right):
    def changed(self, update, x):
        return update + (x - x.detach())


class RoundsItsState(Right):
    def kept(self, average):
        return {"average": average.bfloat16()}


class IsTooNarrow(Right):
    def changed(self, update, x):
        return update[..., :-1]


class TellsAnotherShape(Right):
    def told(self, trace):
        return {"trace": trace[..., :1]} if "trace" in self.publish else {}


class TellsComplexNumbers(Right):
    def told(self, trace):
        return {"trace": torch.complex(trace, trace)} if "trace" in self.publish else {}


class KeepsComplexNumbers(Right):
    def kept(self, average):
        return {"average": torch.complex(average, average)}


class KeepsAList(Right):
    def kept(self, average):
        return {"average": [average]}


class MeasuresEveryToken(Right):
    def forward(self, x, state, signals, tokens):
        return super().forward(x, state, signals, tokens)._replace(metrics={"size": x.detach().norm(dim=-1)})


class MeasuresWithAGradient(Right):
    def forward(self, x, state, signals, tokens):
        return super().forward(x, state, signals, tokens)._replace(metrics={"rate": self.dynamics.logit.mean()})


class LosesToInfinity(Right):
    def forward(self, x, state, signals, tokens):
        return super().forward(x, state, signals, tokens)._replace(losses={"own": x.sum() / 0})


class DrawsForNothing(Right):
    def changed(self, update, x):
        torch.rand(1)
        return update


class HidesItsState(Right):
    last: Tensor

    def given(self, state):
        return self.last

    def kept(self, average):
        self.last = average
        return {"average": average}


class HasAComplexParameter(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class DrawsFromTheClock(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        with torch.no_grad():
            self.output.weight.normal_(generator=torch.Generator().manual_seed(torch.Generator().seed()))


class IsNoisy(Right):
    def changed(self, update, x):
        return update + 1e-3 * torch.rand_like(update)


class KeepsAScaleToItself(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.scale = torch.rand(1, generator=context.generator).item()

    def changed(self, update, x):
        return self.scale * update


class IsAlwaysSingle(Right):
    def changed(self, update, x):
        return update.float()


class WritesIntoItsInput(Right):
    def changed(self, update, x):
        x.detach().mul_(0.5)
        return update


class TellsEverything(Right):
    def told(self, trace):
        return {"trace": trace}


class LosesPrecisionUnderAutocast(Right):
    def kept(self, average):
        return {"average": self.output(average)}


class HasNarrowDynamicsUnderAutocast(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.dynamics.map = nn.Linear(context.width, context.width)

    def changed(self, update, x):
        return update + 0 * self.dynamics.map(update)


class DividesByZeroUnderAutocast(Right):
    def changed(self, update, x):
        return update + (0 * update).sqrt() if torch.is_autocast_enabled("cpu") else update


class CountsItsCalls(Right):
    calls = 0

    def changed(self, update, x):
        self.calls += 1
        return update * self.calls


class ComputesOtherwiseCompiled(Right):
    def changed(self, update, x):
        return 2 * update if torch.compiler.is_compiling() else update


class CannotAbsorb(Right):
    def update_statistics(self, metrics, progress):
        return metrics["loss"]


class HasAnotherSignature(Right):
    def forward(self, x, memory, signals, tokens):
        return super().forward(x, memory, signals, tokens)


class TestRight(LayerSuite):
    name = "right"

    @classmethod
    def registry(cls):
        return registry_with(("layer", Component("right", options=TraceOptions, implementation=f"{__name__}:Right")))


CAUGHT = [
    (ChangesTheGivenState, "test_tokens_are_taken_back_bit_by_bit"),
    (SeesTheFuture, "test_a_large_change_reaches_no_earlier_token_and_no_other_row"),
    (SeesTheFutureInTraining, "test_a_large_change_reaches_no_earlier_token_and_no_other_row"),
    (SeesOtherRows, "test_a_large_change_reaches_no_earlier_token_and_no_other_row"),
    (SeesOtherRowsInTraining, "test_a_large_change_reaches_no_earlier_token_and_no_other_row"),
    (SeesAcrossAPeriodsEdge, "test_a_large_change_reaches_no_earlier_token_and_no_other_row"),
    (SeesAcrossAPeriodsEdge, "test_gradients_of_earlier_outputs_are_exactly_zero"),
    (SeesTheFuture, "test_gradients_of_earlier_outputs_are_exactly_zero"),
    (SeesTheFutureInTraining, "test_gradients_of_earlier_outputs_are_exactly_zero"),
    (SeesOtherRows, "test_gradients_of_earlier_outputs_are_exactly_zero"),
    (SeesTheFuture, "test_a_large_change_far_ahead_reaches_no_earlier_token"),
    (SeesTheFuture, "test_a_change_of_all_that_follows_reaches_no_earlier_token"),
    (PrefersTheFirstRow, "test_rows_can_be_permuted"),
    (IgnoresTheStream, "test_a_large_change_does_reach_its_own_token"),
    (ForgetsItsState, "test_pieces_give_what_the_whole_gives"),
    (SeesTheFuture, "test_pieces_give_what_the_whole_gives"),
    (ForgetsItsStateStepwise, "test_pieces_give_what_the_whole_gives"),
    (CutsTheGradientOfItsState, "test_gradients_through_pieces_are_those_of_the_whole"),
    (IgnoresDocuments, "test_documents_are_separate"),
    (SeesOtherRows, "test_documents_are_separate"),
    (IgnoresPadding, "test_padding_leaves_the_state_alone"),
    (HasADeadParameter, "test_gradients_reach_every_parameter"),
    (HasADeadBranch, "test_something_trains_from_the_first_step"),
    (HasADeadBranch, "test_returns_what_the_contract_says"),
    (LiesAboutItsGradient, "test_gradients_are_the_derivative"),
    (IsTooNarrow, "test_returns_what_the_contract_says"),
    (TellsAnotherShape, "test_returns_what_the_contract_says"),
    (TellsComplexNumbers, "test_returns_what_the_contract_says"),
    (KeepsComplexNumbers, "test_returns_what_the_contract_says"),
    (KeepsAList, "test_returns_what_the_contract_says"),
    (MeasuresEveryToken, "test_returns_what_the_contract_says"),
    (MeasuresWithAGradient, "test_returns_what_the_contract_says"),
    (LosesToInfinity, "test_returns_what_the_contract_says"),
    (DrawsForNothing, "test_using_it_changes_nothing_global"),
    (RoundsItsState, "test_returns_what_the_contract_says"),
    (HidesItsState, "test_state_survives_being_stored"),
    (HasAComplexParameter, "test_parameters_and_buffers_are_real_and_at_least_fp32"),
    (DrawsFromTheClock, "test_initial_values_depend_on_the_seed_alone"),
    (IsNoisy, "test_the_same_input_gives_the_same_bits"),
    (KeepsAScaleToItself, "test_state_dict_carries_everything"),
    (IsAlwaysSingle, "test_a_float64_copy_stays_float64"),
    (WritesIntoItsInput, "test_leaves_its_inputs_alone"),
    (TellsEverything, "test_returns_only_the_signals_that_are_asked_for"),
    (LosesPrecisionUnderAutocast, "test_bf16_autocast_stays_near_fp32"),
    (HasNarrowDynamicsUnderAutocast, "test_bf16_autocast_stays_near_fp32"),
    (DividesByZeroUnderAutocast, "test_gradients_under_autocast_are_finite"),
    (CountsItsCalls, "test_activation_checkpointing_changes_nothing"),
    (ComputesOtherwiseCompiled, "test_compiles"),
    (CannotAbsorb, "test_statistics_take_an_empty_step"),
    (HasAnotherSignature, "test_the_implementation_has_the_methods_of_its_kind"),
]


@pytest.mark.parametrize(("wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for wrong, test in CAUGHT])
def test_catches(complaint, wrong, test) -> None:
    assert complaint(LayerSuite, wrong, TraceOptions, test), f"{test} lets {wrong.__name__} pass"


@pytest.mark.parametrize("test", ["test_options_can_be_written_in_a_recipe", "test_every_option_is_documented"])
def test_catches_careless_options(complaint, test) -> None:
    assert complaint(LayerSuite, Right, CarelessOptions, test)


def test_every_check_is_shown_something_wrong(tests_of) -> None:
    shown = {test for _, test in CAUGHT}
    assert tests_of(LayerSuite) - shown == {
        "test_options_can_be_written_in_a_recipe",
        "test_every_option_is_documented",
        "test_what_is_nested_gets_its_metrics_back",  # in test_nested_metrics.py
        "test_a_call_keeps_its_parameters",  # in test_faults_of_other_libraries.py
        "test_pieces_of_a_long_row_give_what_the_whole_gives",  # in test_long_rows.py
        "test_gradients_through_pieces_of_a_long_row_are_those_of_the_whole",  # likewise
    }
