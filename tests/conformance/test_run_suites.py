"""The suites of optimizers, schedules, tokenizers and sinks catch components that are wrong in one way."""

from __future__ import annotations

import itertools
import json
import math
import re

import attrs
import numpy as np
import pytest
import torch

from muse_core.data.tokenizer import Tokenizer
from muse_core.testing.optimizers import OptimizerSuite
from muse_core.testing.schedules import ScheduleSuite
from muse_core.testing.sinks import SinkSuite
from muse_core.testing.tokenizers import TokenizerSuite

calls = itertools.count()


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


class Descent:
    """Steepest descent with momentum, by torch."""

    def __init__(self, options, context):
        self.rate = context.learning_rate

    def build(self, parameters):
        return [torch.optim.SGD([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5)]

    def kept(self, optimizer, parameter):
        return {"momentum_buffer": parameter}


class OnlyMatrices(Descent):
    def build(self, parameters):
        return [torch.optim.SGD([one.tensor for one in parameters.values() if one.tensor.ndim == 2], lr=self.rate)]


class Frozen(Descent):
    def build(self, parameters):
        return [torch.optim.SGD([one.tensor for one in parameters.values()], lr=0.0, momentum=0.5)]


class OwnRate(Descent):
    def build(self, parameters):
        class Steady(torch.optim.SGD):
            def step(self, closure=None):
                for group in self.param_groups:
                    group["lr"] = 0.01
                return super().step(closure)

        return [Steady([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5)]


class Hidden(Descent):
    """Keeps the number of updates in the optimiser itself, where no checkpoint finds it."""

    def build(self, parameters):
        class Slowing(torch.optim.SGD):
            count = 0

            def step(self, closure=None):
                self.count += 1
                for group in self.param_groups:
                    group["lr"] /= self.count
                return super().step(closure)

        return [Slowing([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5)]


class SaysLess(Descent):
    def kept(self, optimizer, parameter):
        return {}


class Noisy(Descent):
    def build(self, parameters):
        class Shaken(torch.optim.SGD):
            def step(self, closure=None):
                torch.rand(1)
                return super().step(closure)

        return [Shaken([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5)]


class Ascent(Descent):
    def build(self, parameters):
        made = torch.optim.SGD([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5, maximize=True)
        return [made]


class MovesWithoutGradient(Descent):
    def build(self, parameters):
        class Decaying(torch.optim.SGD):
            def step(self, closure=None):
                with torch.no_grad():
                    for group in self.param_groups:
                        for parameter in group["params"]:
                            parameter.mul_(1 - 0.1 * group["lr"])
                return super().step(closure)

        return [Decaying([one.tensor for one in parameters.values()], lr=self.rate, momentum=0.5)]


class Triangle:
    """Up, and straight down."""

    def __init__(self, options, context):
        self.context = context

    def factor(self, updates):
        rising = self.context.warming(updates)
        if rising is not None:
            return rising
        return max(0.0, 1 - (updates - self.context.warmup_steps) / self.context.steps)


class Negative(Triangle):
    def factor(self, updates):
        return super().factor(updates) - 0.1


class Counts(Triangle):
    def factor(self, updates):
        return super().factor(updates) * (1 - 1e-6 * (next(calls) % 7))


class Cold(Triangle):
    def factor(self, updates):
        return max(0.0, 1 - updates / self.context.steps)


class Low(Triangle):
    def factor(self, updates):
        return 0.4 * super().factor(updates)


class Stairs(Triangle):
    def factor(self, updates):
        return 0.1 if updates > self.context.steps // 2 else super().factor(updates)


class Boasts(Triangle):
    def unchanged_until(self):
        return self.context.steps


class Nibbles(Tokenizer):
    """Two tokens a byte: the high half without bytes, and the byte itself."""

    separator = 16
    pieces = (*(b"" for _ in range(17)), *(bytes([value]) for value in range(256)))

    def encode_batch(self, texts):
        def one(text):
            values = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
            return np.stack([values >> 4, values + 17], axis=1).reshape(-1)

        return [one(text) for text in texts]

    def to_json(self):
        return json.dumps({"kind": "specimen"})


class MakesNibbles:
    made = Nibbles

    def __init__(self, options, context):
        pass

    def identity(self):
        return "nibbles"

    def make(self, texts):
        return self.made()

    @staticmethod
    def restore(table):
        return Nibbles()


class Stripped(MakesNibbles):
    class made(Nibbles):  # noqa: N801
        def encode_batch(self, texts):
            return super().encode_batch([text.strip() for text in texts])


class Uncounted(MakesNibbles):
    class made(Nibbles):  # noqa: N801
        byte_lengths = np.ones(273, dtype=np.int64)


class Separated(MakesNibbles):
    class made(Nibbles):  # noqa: N801
        def encode_batch(self, texts):
            return [np.concatenate([ids, [16]]) for ids in super().encode_batch(texts)]


class Padded(MakesNibbles):
    class made(Nibbles):  # noqa: N801
        def encode_batch(self, texts):
            found = super().encode_batch(texts)
            longest = max(map(len, found))
            return [np.concatenate([ids, np.zeros(longest - len(ids), dtype=np.int64)]) for ids in found]


class Dated(MakesNibbles):
    class made(Nibbles):  # noqa: N801
        def __init__(self):
            self.number = next(calls)

        def to_json(self):
            return json.dumps({"kind": "specimen", "number": self.number})


class Lost(MakesNibbles):
    @staticmethod
    def restore(table):
        raise ValueError("it cannot be read")


class Restless(MakesNibbles):
    def identity(self):
        return f"nibbles/{next(calls)}"


class Lines:
    """A line for every row."""

    def __init__(self, options, context):
        self.file = (context.run / "lines.txt").open("a")

    def row(self, row):
        self.file.write(f"{row}\n")

    def event(self, row):
        self.row(row)

    def end(self, summary):
        self.row(summary)

    def close(self):
        self.file.close()


class FiniteOnly(Lines):
    def row(self, row):
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


class Changing(Lines):
    def row(self, row):
        row.pop("event", None)


class OnceOnly(Lines):
    def __init__(self, options, context):
        (context.run / "once").mkdir()
        super().__init__(options, context)


class NeedsRows(Lines):
    def row(self, row):
        self.last = row

    def close(self):
        self.last.keys()


class Draws(Lines):
    def row(self, row):
        torch.rand(1)


WRONG = [
    (OptimizerSuite, OnlyMatrices, "test_updates_every_parameter", "exactly one group"),
    (OptimizerSuite, Frozen, "test_updates_every_parameter", "is not updated"),
    (OptimizerSuite, OwnRate, "test_follows_a_schedule_down_to_nothing", "moves at a rate of 0"),
    (OptimizerSuite, MovesWithoutGradient, "test_leaves_a_parameter_without_a_gradient", ""),
    (OptimizerSuite, SaysLess, "test_keeps_what_it_says_it_keeps", r"keeps \['momentum_buffer'\]"),
    (OptimizerSuite, Hidden, "test_state_put_back_gives_the_same_updates_to_the_last_bit", "state outside kept"),
    (OptimizerSuite, Hidden, "test_forgets_its_moments", "remembers"),
    (OptimizerSuite, Noisy, "test_draws_nothing_from_the_global_generator", "moved torch's"),
    (OptimizerSuite, Ascent, "test_descends", ""),
    (OptimizerSuite, OnlyMatrices, "test_may_be_given_a_part_of_the_parameters", ""),
    (ScheduleSuite, Negative, "test_gives_shares_also_beyond_the_span", "outside 0 to 1"),
    (ScheduleSuite, Counts, "test_is_a_function_of_the_number_of_updates", "depends on what was asked before"),
    (ScheduleSuite, Cold, "test_warms_up_and_reaches_the_peak", "no warm-up"),
    (ScheduleSuite, Low, "test_warms_up_and_reaches_the_peak", "never reached"),
    (ScheduleSuite, Stairs, "test_is_continuous", "jumps"),
    (ScheduleSuite, Boasts, "test_a_longer_span_shares_the_rates_that_it_says", "a longer span differs"),
    (TokenizerSuite, Stripped, "test_gives_text_back_byte_for_byte", "comes back changed"),
    (TokenizerSuite, Uncounted, "test_counts_every_byte_once", "bits per byte would be wrong"),
    (TokenizerSuite, Separated, "test_text_never_holds_the_separator", ""),
    (TokenizerSuite, Padded, "test_a_text_has_the_same_tokens_beside_others", "texts beside it"),
    (TokenizerSuite, Dated, "test_the_same_text_gives_the_same_tokenizer", ""),
    (TokenizerSuite, Dated, "test_is_read_again_from_a_runs_directory", "another tokenizer than it wrote"),
    (TokenizerSuite, Lost, "test_is_read_again_from_a_runs_directory", "it cannot be read"),
    (TokenizerSuite, Restless, "test_names_what_decides_it", "not stable"),
    (SinkSuite, Changing, "test_takes_everything_that_a_run_tells", "changes the rows"),
    (SinkSuite, FiniteOnly, "test_takes_everything_that_a_run_tells", ""),
    (SinkSuite, OnceOnly, "test_is_opened_again_by_a_resumed_run", "FileExistsError"),
    (SinkSuite, NeedsRows, "test_may_be_closed_before_anything_is_told", "AttributeError"),
    (SinkSuite, Draws, "test_moves_no_generator", "moved torch's"),
]
SOUND = {OptimizerSuite: Descent, ScheduleSuite: Triangle, TokenizerSuite: MakesNibbles, SinkSuite: Lines}


@pytest.mark.parametrize(
    ("suite", "wrong", "test", "said"), WRONG, ids=[f"{row[1].__name__}-{row[2]}" for row in WRONG]
)
def test_what_is_wrong_in_one_way_is_caught(complaint, suite, wrong, test, said) -> None:
    found = complaint(suite, wrong, NoOptions, test)
    assert found is not None and re.search(said, found), found


@pytest.mark.parametrize("suite", SOUND, ids=lambda suite: suite.__name__)
def test_what_is_sound_passes_and_every_test_has_its_counterpart(complaint, tests_of, suite) -> None:
    general = {name for name in tests_of(suite.__mro__[1])}
    for test in tests_of(suite):
        found = complaint(suite, SOUND[suite], NoOptions, test)
        assert found is None, f"{test}: {found}"
    assert tests_of(suite) - general == {row[2] for row in WRONG if row[0] is suite}
