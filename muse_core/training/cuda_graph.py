"""``train.cuda_graph``: the forward and backward pass of a step, recorded as a CUDA graph and launched as one.

What the step computes is not changed by it: a graph launches the kernels that were launched when it was recorded, with
the same arguments. What follows reads from the device and decides (clipping, verdicts, the update), and is no part of
it. Of several processes each records its own, with what it gathers and sums over NCCL inside: all must record and
launch in the same steps. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from muse_core.contracts import Batch, State
from muse_core.errors import MuseError, RecipeError
from muse_core.metrics.accumulator import Key, Packed
from muse_core.out_of_memory import ran_out
from muse_core.parallel.one import ONE, Ranks
from muse_core.training.recordable import DRAWN
from muse_core.training.recorded_gradients import LOOKS, OFF, found_same
from muse_core.training.rounding import NEAR, apart, moved

T = TypeVar("T")
Passes = Callable[[Sequence[Batch], Sequence[State], Tensor], tuple[Packed, list[State]]]
"""Micro-batches on the device, what each starts from, and what their sums are divided by, a float64 scalar there, to
numbers and what each ends with. Leaves gradients at the weights."""
PLAIN = 2
"""Steps of one form that run as they are before one is recorded: kernels are compiled and tuned in them."""
MOST = 4
"""Forms of a step that a run may have; each recording keeps the memory of its gradients."""
AGAIN, EACH = (10, 100), 1000
"""Launches of a recording that are compared with the plain pass once more, and each so many of them: what Python
decides may have changed since."""


class Form(NamedTuple):
    """What a recording holds for: everything about a step's inputs that is no number in a tensor. Of several processes
    all come to a new one in the same step: nothing in which their inputs differ comes and goes."""

    structure: Any
    leaves: tuple[Any, ...]
    """Shape, strides and type of each tensor; what is no tensor as it is."""


def form_of(*inputs: Any) -> tuple[list[Any], Form]:
    """Leaves of a step's inputs, and the form of the step."""
    leaves, structure = pytree.tree_flatten(inputs)
    return leaves, Form(structure, tuple(map(_told, leaves)))


class Recording(NamedTuple):
    """A recorded step: where it reads and where it writes."""

    graph: Any
    given: list[Any]
    """The inputs' tensors, which are written over before a launch."""
    keys: tuple[Key, ...]
    values: Tensor
    proposed: list[State]
    gradients: dict[str, Tensor]


@attrs.define
class OfOneForm:
    """Steps of one form: plain ones, their recording, and its comparisons with the plain pass."""

    form: Form
    number: int
    """Which one of those that have been."""
    plain: int = 0
    """Steps that ran as they are before the recording."""
    recording: Recording | None = None
    left: int = LOOKS
    """Comparisons that the recording has yet to come through, if none tells it to be the same before."""
    launches: int = 0
    agreed: int = 0
    """Launches when it was last told to be the same."""

    def due(self) -> bool:
        """Whether the next launch is to be compared."""
        launch = self.launches + 1
        if not self.left and (launch in AGAIN or not launch % EACH):
            self.left = LOOKS
        return self.left > 0


class RecordedPasses:
    """Passes that are recorded at the third step of their form and replayed from then on.

    The first replay is compared with the plain pass from the same inputs, and the next ones until one is told to be the
    same; the gradients are the plain pass's until then. So are the tenth, the hundredth and each thousandth, where
    memory holds a plain pass beside the recording. Weights are read where they are, so that whatever changes them
    in place, as a restored checkpoint, is seen. Raises RecipeError for a step that cannot be recorded, and for one
    whose recording computes other gradients.

    ``rounding``: the spacing of numbers at 1 in the precision of products. ``recomputes``: activations are computed
    once more in the backward pass. What draws random numbers would draw others then in a recording, and is refused in
    the first step. ``warn`` is told of a comparison for which there is no memory.
    """

    def __init__(
        self,
        compute: Passes,
        parameters: Mapping[str, nn.Parameter],
        ranks: Ranks = ONE,
        *,
        rounding: float,
        recomputes: bool = False,
        warn: Callable[[str], None] = lambda told: None,
    ):
        self.compute = compute
        self.parameters = parameters
        self.ranks = ranks
        self.rounding = rounding
        self.recomputes = recomputes
        self.warn = warn
        self.forms: list[OfOneForm] = []
        self.replayed = False
        """Whether the last step was a recording's, with its gradients where the recording has them."""

    def __call__(self, pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor) -> tuple[Packed, list[State]]:
        self.replayed = False
        leaves, form = form_of(list(pieces), list(carried), whole)
        steps = self._steps_of(form)
        if steps.plain < PLAIN:
            steps.plain += 1
            return self._plain(pieces, carried, whole)
        own = None
        if steps.due():
            random = torch.cuda.get_rng_state()
            plain = self._beside(pieces, carried, whole, steps)
            if plain is not None:
                own = self._taken()
                if not finite(own):  # nothing to compare a recording with; sums over processes, so that all see it
                    return self._left(own, plain)
                if steps.recording is None:
                    with self.ranks.at_work("the recording of a step"):
                        self._require_all_record(steps.number)
                        steps.recording = self._record(form, leaves)
            torch.cuda.set_rng_state(random)
        recording = steps.recording
        assert recording is not None  # of the first comparison, which no step goes past
        steps.launches += 1
        self.ranks.mark("the recorded forward and backward pass")
        tensors = [place for place, there in enumerate(recording.given) if isinstance(there, Tensor)]
        torch._foreach_copy_([recording.given[place] for place in tensors], [leaves[place] for place in tensors])
        recording.graph.replay()
        if own is not None:
            steps.left -= 1
            again = self._again(pieces, carried, whole, random)
            if not self._same(own, recording.gradients, again, steps):
                return self._left(own, plain)
            steps.left, steps.agreed = 0, steps.launches
        self.replayed = True
        # What is carried to the next step must not be where that step writes.
        proposed = pytree.tree_map_only(Tensor, torch.Tensor.clone, recording.proposed)
        return self._left(recording.gradients, (Packed(recording.keys, recording.values), proposed))

    def _left(self, gradients: Mapping[str, Tensor], found: T) -> T:
        """``found``, with ``gradients`` at the weights."""
        for name, gradient in gradients.items():
            self.parameters[name].grad = gradient
        return found

    def release(self) -> None:
        """Forget what was recorded: NCCL ends a communicator when no graph that uses it is left."""
        for steps in self.forms:
            if steps.recording is not None:
                steps.recording.graph.reset()
                steps.recording = None

    def _same(
        self, own: Mapping[str, Tensor], recorded: Mapping[str, Tensor], again: Iterator[Mapping[str, Tensor]],
        steps: OfOneForm,
    ) -> bool:
        """``found_same``; what it raises says since when, if it was the same before."""
        try:
            return found_same(own, recorded, again, self.ranks, last=not steps.left)
        except RecipeError as error:
            if not steps.agreed:
                raise
            raise RecipeError(
                f"{error}. It was the plain one's {steps.launches - steps.agreed} launches before, since when "
                "something in Python has changed what a step computes, which a recording does not see: what was "
                "trained meanwhile is not what the recipe says"
            ) from error

    def _beside(
        self, pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor, steps: OfOneForm
    ) -> tuple[Packed, list[State]] | None:
        """The plain pass, to compare a launch with; None where a recording that was told to be the same before leaves
        no memory for it. Several processes end there, since those that have the memory would wait for the others."""
        try:
            return self._plain(pieces, carried, whole)
        except Exception as error:
            if not steps.agreed or self.ranks.size > 1 or not ran_out(error):
                raise
        self._taken()
        steps.left = 0
        torch.cuda.empty_cache()
        self.warn(
            f"train.cuda_graph: there is no memory for a plain pass beside the recorded one, so that launch "
            f"{steps.launches + 1} of this recording is not compared with it"
        )
        return None

    def _plain(self, pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor) -> tuple[Packed, list[State]]:
        if not self.recomputes:
            return self.compute(pieces, carried, whole)
        before = (torch.get_rng_state(), torch.cuda.get_rng_state())
        found = self.compute(pieces, carried, whole)
        if not all(map(torch.equal, before, (torch.get_rng_state(), torch.cuda.get_rng_state()))):
            raise RecipeError(f"train.cuda_graph: {DRAWN} - {OFF}")
        return found

    def _again(
        self, pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor, random: Tensor
    ) -> Iterator[dict[str, Tensor]]:
        """Gradients of the plain pass once more, as it was and then with weights moved within their rounding, each time
        from the state ``random`` of the device's generator."""
        noise = torch.Generator(whole.device).manual_seed(0)
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for number in itertools.count():
            after = torch.cuda.get_rng_state()
            torch.cuda.set_rng_state(random)
            with moved(weights, self.rounding, noise) if number else contextlib.nullcontext():
                self._plain(pieces, carried, whole)
            torch.cuda.set_rng_state(after)
            yield self._taken()

    def _require_all_record(self, number: int) -> None:
        numbers = self.ranks.gather(number)
        if any(other != number for other in numbers):
            raise MuseError(
                f"train.cuda_graph: the processes would record steps of different forms ({numbers}), of which each "
                f"waits for the others' - {OFF}"
            )

    def _steps_of(self, form: Form) -> OfOneForm:
        for steps in self.forms:
            if steps.form == form:
                return steps
        if len(self.forms) == MOST:
            raise RecipeError(
                f"train.cuda_graph: steps of more than {MOST} forms (shapes of batches and of the state that they "
                f"start from, shares of targets by halves, places in the filters' period) cannot all be recorded "
                f"- {OFF}"
            )
        self.forms.append(OfOneForm(form, len(self.forms)))
        return self.forms[-1]

    def _taken(self) -> dict[str, Tensor]:
        """The gradients that a pass left at the weights, which have none afterwards."""
        found = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        return found

    def _record(self, form: Form, leaves: list[Any]) -> Recording:
        given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        pieces, carried, whole = pytree.tree_unflatten(given, form.structure)
        graph, (packed, proposed) = captured(
            lambda: self.compute(pieces, carried, whole), "this step cannot be recorded"
        )
        # Not left at the weights: a plain pass behind it would add its own to them where the recording has them.
        return Recording(graph, given, packed.keys, packed.values, proposed, self._taken())


def captured(function: Callable[[], T], refusal: str) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of what ``function()`` launches, and what that returned. Raises RecipeError, with ``refusal``, where it
    cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may write a checkpoint meanwhile.
        with draws_as_before(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            return graph, function()
    except RuntimeError as error:
        if ran_out(error):  # or the end of the capture complains of what it was told before
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"train.cuda_graph: {refusal}: something in it waits for the GPU, or lets a value of a tensor decide what "
            f"is computed ({what}) - {OFF}"
        ) from error


@contextlib.contextmanager
def draws_as_before() -> Iterator[None]:
    """Where a capture within fails, the device's generator is as it was before. torch leaves it to the capture, and
    everything that draws in the process raises "Offset increment outside graph capture" from then on (2.11.0)."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = torch.cuda.get_rng_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(generator.clone_state().graphsafe_get_state())
        torch.cuda.set_rng_state(state)
        raise


class RecordedCalls:
    """A function of tensors, recorded when it comes for the third time to tensors that are where they were.

    It reads and writes the tensors that it is called with, waits for nothing and draws nothing. What it returns is
    written over by the next call with these tensors. Tensors in another place, as moments from a checkpoint, are other
    tensors: a recording is found by addresses and needs not be told. The first replay is compared with the plain call
    from the same inputs. Raises RecipeError for a recording that computes something else.
    """

    def __init__(self, what: str):
        """``what``: what the function gives, for messages."""
        self.what = what
        self.left = 4 * MOST
        """Recordings that may be made: of an optimiser that puts its moments elsewhere in every step none helps."""
        self.seen: Counter[Any] = Counter()
        """Plain calls; those of long ago are forgotten."""
        self.recordings: dict[Any, tuple[torch.cuda.CUDAGraph, Any]] = {}

    def __call__(self, function: Callable[[], T], read: Sequence[Tensor], written: Sequence[Tensor] = ()) -> T:
        """``function()``, which reads ``read`` and ``written`` and changes ``written`` in place."""
        key = tuple([(one.data_ptr(), one.shape, one.stride(), one.dtype) for one in (*read, *written)])
        if key not in self.recordings:
            if self.seen[key] < PLAIN or not self.left:
                if len(self.seen) > 4 * MOST:
                    self.seen.clear()
                self.seen[key] += 1
                return function()
            return self._first(key, function, written)
        graph, made = self.recordings[key]
        graph.replay()
        found: T = made
        return found

    def _first(self, key: Any, function: Callable[[], T], written: Sequence[Tensor]) -> T:
        before = [one.clone() for one in written]
        plain = function()
        due = _tensors(plain, [one.clone() for one in written])
        if not finite(dict(enumerate(due))):  # nothing to compare a recording with
            return plain
        for one, was in zip(written, before, strict=True):
            one.copy_(was)
        del self.seen[key]
        self.left -= 1
        if len(self.recordings) == MOST:
            del self.recordings[next(iter(self.recordings))]
        graph, found = captured(function, f"{self.what} cannot be recorded")
        graph.replay()
        for expected, recorded in zip(due, _tensors(found, written), strict=True):
            distance, size = apart(expected, recorded)
            if not distance <= NEAR * size:
                raise RecipeError(
                    f"train.cuda_graph: recorded, {self.what} are others than plainly ({distance:.1e} apart, where "
                    f"their norm is {size:.1e}) - {OFF}"
                )
        self.recordings[key] = graph, found
        return found


def _tensors(returned: Any, written: Sequence[Tensor]) -> list[Tensor]:
    """What a call gave and what it changed."""
    return [*pytree.tree_leaves(returned), *written]


def finite(gradients: Mapping[Any, Tensor]) -> bool:
    """Whether no entry is a NaN or an infinity. Waits for the device."""
    flags = [gradient.isfinite().all() for gradient in gradients.values()]
    return not flags or bool(torch.stack(flags).all())


def _told(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
