"""The model suite passes a right model and catches wrong ones."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from muse_core.component import Component
from muse_core.contracts import ModelOutput
from muse_core.testing.loose import registry_with
from muse_core.testing.models import ModelSuite


@attrs.frozen(kw_only=True)
class AverageOptions:
    """Sums of what a document has said so far."""

    width: int = 12
    """Width."""


class Right(nn.Module):
    """hidden_t = M Σ_{s ≤ t} x_s / √(t + 1) over the document's tokens s."""

    def __init__(self, options, context):
        super().__init__()
        self.vocabulary_size = context.vocabulary_size
        with context.seeded("model"):
            self.embedding = nn.Embedding(context.vocabulary_size, options.width)
            self.mix = nn.Linear(options.width, options.width)
            self.head = nn.Linear(options.width, context.vocabulary_size)

    def forward(self, inputs, state=None, tokens=None):
        x = inputs if inputs.is_floating_point() else self.embedding(inputs)
        before = torch.zeros_like(x[:, 0]) if state is None else self.given(state["sum"])
        count = x.new_zeros(x.shape[0], 1) if state is None else state["count"]
        there = self.there(x, tokens)
        hidden = []
        for token in range(x.shape[1]):
            now = there[:, token, None]
            if tokens is not None and tokens.resets is not None:
                starts = tokens.resets[:, token, None] & now
                before, count = (value.masked_fill(starts, 0.0) for value in (before, count))
            before, count = before + x[:, token] * now, count + now
            hidden.append(before / count.clamp(min=1).sqrt())
        mixed = self.mix(self.seen(torch.stack(hidden, dim=1)))
        return self.returned(ModelOutput(mixed, {"sum": before, "count": count}, {}, {}))

    def embed(self, ids):
        return self.embedding(ids)

    def there(self, x, tokens):
        return torch.ones_like(x[..., 0], dtype=torch.bool) if tokens is None or tokens.valid is None else tokens.valid

    def given(self, state):
        return state

    def seen(self, hidden):
        return hidden

    def returned(self, output):
        return output

    def logits(self, hidden):
        return self.head(hidden)


class ChangesTheGivenState(Right):
    def given(self, state):
        return state.add_(1.0)


class ReadsPadding(Right):
    def there(self, x, tokens):
        return torch.ones_like(x[..., 0], dtype=torch.bool)


class EmbedsAnotherWay(Right):
    def embed(self, ids):
        return 2 * self.embedding(ids)


class SeesTheFuture(Right):
    def seen(self, hidden):
        return hidden + 1e-6 * hidden[:, -1:]


class SeesTheFutureInTraining(SeesTheFuture):
    def seen(self, hidden):
        return super().seen(hidden) if self.training else hidden


class SeesOtherRows(Right):
    def seen(self, hidden):
        return hidden + 1e-6 * hidden.mean(dim=0, keepdim=True)


class ForgetsItsState(Right):
    def given(self, state):
        return torch.zeros_like(state)


class KeepsComplexNumbers(Right):
    def returned(self, output):
        total = output.state["sum"]
        return output._replace(state=output.state | {"sum": torch.complex(total, total)})


class ReturnsScores(Right):
    def returned(self, output):
        return self.logits(output.hidden)


class HasADeadHead(Right):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.second_head = nn.Linear(2, 2)


class LiesAboutItsGradient(Right):
    def seen(self, hidden):
        return hidden + (hidden - hidden.detach())


class RoundsUnderAutocast(Right):
    def seen(self, hidden):
        return hidden.round() if torch.is_autocast_enabled("cpu") else hidden


class CountsItsCalls(Right):
    calls = 0

    def seen(self, hidden):
        self.calls += 1
        return hidden * self.calls


def row(implementation):
    return ("model", Component("right", options=AverageOptions, implementation=f"{__name__}:{implementation}"))


class TestRight(ModelSuite):
    name = "right"

    @classmethod
    def registry(cls):
        return registry_with(row("Right"))


CAUGHT = [
    (ChangesTheGivenState, "test_tokens_are_taken_back_bit_by_bit"),
    (ReadsPadding, "test_rows_may_end_in_padding"),
    (EmbedsAnotherWay, "test_embeddings_of_ids_give_what_the_ids_give"),
    (SeesTheFuture, "test_later_tokens_and_other_rows_do_not_matter"),
    (SeesOtherRows, "test_later_tokens_and_other_rows_do_not_matter"),
    (SeesTheFutureInTraining, "test_gradients_of_earlier_logits_are_exactly_zero"),
    (ForgetsItsState, "test_pieces_give_what_the_whole_gives"),
    (KeepsComplexNumbers, "test_returns_hidden_states_and_logits"),
    (ReturnsScores, "test_returns_hidden_states_and_logits"),
    (HasADeadHead, "test_gradients_reach_every_parameter"),
    (LiesAboutItsGradient, "test_gradients_are_the_derivative"),
    (RoundsUnderAutocast, "test_bf16_autocast_stays_near_fp32"),
    (CountsItsCalls, "test_activation_checkpointing_changes_nothing"),
]


@pytest.mark.parametrize(("wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for wrong, test in CAUGHT])
def test_catches(complaint, wrong, test) -> None:
    assert complaint(ModelSuite, wrong, AverageOptions, test), f"{test} lets {wrong.__name__} pass"


def test_every_check_of_its_own_is_shown_something_wrong(tests_of) -> None:
    own = {name for name in tests_of(ModelSuite) if name in vars(ModelSuite)}
    assert own <= {test for _, test in CAUGHT}
