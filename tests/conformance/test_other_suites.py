"""The suites of initializers, sources, monitors, stages and kernel backends catch wrong components."""

from __future__ import annotations

import itertools
import math

import attrs
import numpy as np
import pytest
import torch

from muse_core.component import Component
from muse_core.contracts import Action, Batch, Document, Verdict
from muse_core.testing.initializers import InitializerSuite
from muse_core.testing.kernel_backends import KernelBackendSuite
from muse_core.testing.loose import registry_with
from muse_core.testing.monitors import MonitorSuite
from muse_core.testing.sources import SourceSuite
from muse_core.testing.stages import StageSuite
from muse_core.training.objectives import NextToken, Train

calls = itertools.count()


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


class Normal:
    def __init__(self, options, context):
        pass

    def __call__(self, tensor, *, role, generator):
        return torch.randn(tensor.shape, generator=generator) * tensor.std()


class NormalFromAnywhere(Normal):
    def __call__(self, tensor, *, role, generator):
        return torch.randn(tensor.shape)


class NormalInPlace(Normal):
    def __call__(self, tensor, *, role, generator):
        return tensor.normal_(generator=generator)


class Zero(Normal):
    def __call__(self, tensor, *, role, generator):
        return torch.zeros_like(tensor)


class Flattened(Normal):
    def __call__(self, tensor, *, role, generator):
        return super().__call__(tensor, role=role, generator=generator).flatten()


class Numbers:
    def __init__(self, options, context):
        pass

    def fingerprint(self):
        return "numbers/3"

    def documents(self):
        yield from (Document(text=f"Number {number}.", name=str(number)) for number in range(3))


class NumbersOfToday(Numbers):
    def fingerprint(self):
        return f"numbers/{next(calls)}"


class MoreNumbersEachTime(Numbers):
    def documents(self):
        yield from (Document(text=f"Number {next(calls)}.", name=str(number)) for number in range(3))


class NoNumbers(Numbers):
    def documents(self):
        yield from ()


class Sums:
    """Examples a, b, a + b, …: the last token is the sum of the first two."""

    vocabulary_size = 19

    def __init__(self, options, context):
        pass

    def fingerprint(self):
        return "sums"

    def examples(self, split, indices, length):
        seeds = [np.random.default_rng([("train", "validation", "test").index(split), index]) for index in indices]
        digits = torch.from_numpy(np.stack([seed.integers(10, size=length) for seed in seeds]))
        labels = torch.zeros_like(digits)
        labels[:, -1] = digits[:, 0] + digits[:, 1]
        return Batch(digits, labels, (torch.arange(length) == length - 1).expand(len(digits), -1), None)


class SumsOfNothing(Sums):
    def examples(self, split, indices, length):
        batch = super().examples(split, indices, length)
        return batch._replace(loss_mask=torch.zeros_like(batch.loss_mask))


class SumsOutsideTheVocabulary(Sums):
    vocabulary_size = 5


class SumsInEverySplit(Sums):
    def examples(self, split, indices, length):
        return super().examples("train", indices, length)


class SumsByPlace(Sums):
    def examples(self, split, indices, length):
        return super().examples(split, range(len(indices)), length)


class Ceiling:
    """Skips a step of non-finite loss; two in a row halt."""

    def __init__(self, options, context):
        self.name, self.streak = context.name, 0

    def measure(self, moment, values):
        if moment != "gradients":
            return {}
        return {"largest_max": torch.stack([value.abs().max() for value in values.values()]).max()}

    def judge(self, step, floats):
        self.streak = 0 if math.isfinite(floats["loss"]) else self.streak + 1
        return Verdict(Action(min(3, 2 * self.streak - 1)), "loss is not finite") if self.streak else Verdict()

    def wants_probe(self, step, floats):
        return False

    def probe(self, model):
        return {}

    def state_dict(self):
        return {"streak": self.streak}

    def load_state_dict(self, state):
        self.streak = state["streak"]


class Panics(Ceiling):
    def judge(self, step, floats):
        return Verdict(Action.HALT, "it is late") if step > 30 else Verdict()


class IsSilent(Ceiling):
    def judge(self, step, floats):
        return super().judge(step, floats)._replace(reason="")


class ForgetsItsStreak(Ceiling):
    def state_dict(self):
        return {"streak": 0}


class MeasuresRows(Ceiling):
    def measure(self, moment, values):
        return {"norms": next(iter(values.values())).norm(dim=1)} if values else {}


class Hesitates(Ceiling):
    def wants_probe(self, step, floats):
        return None


class MeanNextToken(NextToken):
    def __call__(self, model, batch, state):
        result = super().__call__(model, batch, state)
        return result._replace(total=result.total / batch.loss_mask.sum())


class TrainByMean(Train):
    def objective(self, model, data):
        return MeanNextToken()


class TrainForgetfully(Train):
    def objective(self, model, data):
        objective = NextToken()
        objective.state_dict = lambda: {"seen": 3}
        return objective


class TrainPerhaps(Train):
    def trainable(self, name):
        return None


def shifted(*arguments, **options):
    """causal_resolvent_diagonal with a small error in the carried state."""
    from muse_kernels.torch import causal_resolvent_diagonal

    theta, final = causal_resolvent_diagonal(*arguments, **options)
    return theta, final * 1.001


class Backend:
    rank = -5
    table = {"causal_resolvent_diagonal": "muse_kernels.torch:causal_resolvent_diagonal"}

    def __init__(self, options, context):
        pass

    def operations(self):
        return self.table

    def refuse(self, request):
        known = request.operation in self.table and "group" not in request.needs
        return None if known else "it serves one operation on one process"


def swirl(x):
    return x.sin()


def swirl_off(x):
    return x.sin() + 1e-2 * x


class BackendWithItsOwn(Backend):
    """An operation that muse-kernels does not define, beside one that it does."""

    rank = -9
    table = Backend.table | {"swirl": f"{__name__}:swirl"}

    def problems(self, tokens):
        return {"swirl": (f"{__name__}:swirl", {"start": {"x": torch.linspace(-1, 1, tokens, dtype=torch.float64)}})}


class BackendOffInItsOwn(BackendWithItsOwn):
    table = Backend.table | {"swirl": f"{__name__}:swirl_off"}


class BackendWithItsOwnUncompared(Backend):
    """Its operation is new and it says nothing to compare it with."""

    table = {"swirl": f"{__name__}:swirl"}


class BackendOffByAThousandth(Backend):
    rank = -6
    table = {"causal_resolvent_diagonal": f"{__name__}:shifted"}


class BackendOfAMissingModule(Backend):
    rank = -7
    table = {"causal_resolvent_diagonal": "muse_kernels.nowhere:causal_resolvent_diagonal"}


class BackendThatAnswersTrue(Backend):
    rank = -8

    def refuse(self, request):
        return request.operation not in self.table


class BackendWithoutRank(Backend):
    rank = "high"


def of(suite, implementation):
    row = Component("right", options=NoOptions, implementation=f"{__name__}:{implementation.__name__}")
    return classmethod(lambda cls: registry_with((suite.kind, row)))


class TestNormal(InitializerSuite):
    name, registry = "right", of(InitializerSuite, Normal)


class TestNumbers(SourceSuite):
    name, registry = "right", of(SourceSuite, Numbers)


class TestSums(SourceSuite):
    name, registry = "right", of(SourceSuite, Sums)


class TestCeiling(MonitorSuite):
    name, registry = "right", of(MonitorSuite, Ceiling)


class TestBackend(KernelBackendSuite):
    name, registry = "right", of(KernelBackendSuite, Backend)


class TestBackendWithItsOwn(KernelBackendSuite):
    name, registry = "right", of(KernelBackendSuite, BackendWithItsOwn)


class TestBackendWithItsOwnUncompared(KernelBackendSuite):
    name, registry = "right", of(KernelBackendSuite, BackendWithItsOwnUncompared)


CAUGHT = [
    (InitializerSuite, NormalFromAnywhere, "test_depends_on_the_generator_alone"),
    (InitializerSuite, NormalInPlace, "test_leaves_the_given_tensor_alone"),
    (InitializerSuite, Zero, "test_returns_the_same_shape_finite_and_alive"),
    (InitializerSuite, Flattened, "test_returns_the_same_shape_finite_and_alive"),
    (SourceSuite, NumbersOfToday, "test_the_fingerprint_is_stable"),
    (SourceSuite, MoreNumbersEachTime, "test_gives_the_same_documents_again"),
    (SourceSuite, NoNumbers, "test_gives_documents"),
    (SourceSuite, SumsOfNothing, "test_examples_are_tokens_with_something_to_count"),
    (SourceSuite, SumsOutsideTheVocabulary, "test_examples_are_tokens_with_something_to_count"),
    (SourceSuite, SumsInEverySplit, "test_examples_depend_on_split_and_number_alone"),
    (SourceSuite, SumsByPlace, "test_examples_depend_on_split_and_number_alone"),
    (MonitorSuite, Panics, "test_lets_a_healthy_run_go_on"),
    (MonitorSuite, IsSilent, "test_judges_a_damaged_step_without_raising_and_says_why"),
    (MonitorSuite, ForgetsItsStreak, "test_state_dict_is_all_that_a_judge_remembers"),
    (MonitorSuite, MeasuresRows, "test_measures_scalars"),
    (MonitorSuite, Hesitates, "test_says_whether_it_wants_to_probe"),
    (StageSuite, TrainByMean, "test_the_objective_is_a_sum_over_counted_tokens"),
    (StageSuite, TrainForgetfully, "test_the_objective_has_a_state_dict"),
    (StageSuite, TrainPerhaps, "test_says_which_parameters_train"),
    (KernelBackendSuite, BackendOffByAThousandth, "test_agrees_with_the_reference"),
    (KernelBackendSuite, BackendOffInItsOwn, "test_agrees_with_the_reference"),
    (KernelBackendSuite, BackendOfAMissingModule, "test_operations_can_be_imported_unless_refused_everywhere"),
    (KernelBackendSuite, BackendThatAnswersTrue, "test_answers_every_request"),
    (KernelBackendSuite, BackendWithoutRank, "test_has_a_rank"),
]


@pytest.mark.parametrize(
    ("suite", "wrong", "test"), CAUGHT, ids=[f"{wrong.__name__}-{test[5:]}" for _, wrong, test in CAUGHT]
)
def test_catches(complaint, suite, wrong, test) -> None:
    assert complaint(suite, wrong, NoOptions, test), f"{test} lets {wrong.__name__} pass"


@pytest.mark.parametrize("suite", [InitializerSuite, SourceSuite, MonitorSuite, StageSuite, KernelBackendSuite])
def test_every_check_of_its_own_is_shown_something_wrong(tests_of, suite) -> None:
    own = {name for name in tests_of(suite) if name in vars(suite)}
    assert own == {test for shown, _, test in CAUGHT if shown is suite}
