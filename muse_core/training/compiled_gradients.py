"""Whether compiled code gives a model the gradients of its plain code, asked before an attempt's first step.

A compiler may lose a gradient and leave every output right, so that a run would train on in silence: torch 2.11 did so
with a ``torch.autograd.Function`` that works in place (https://github.com/pytorch/pytorch/pull/180921). The first
micro-batch is computed twice in the run's precision: with what ``train.compile`` made, which is what trains then, and
without. What rounding does to the plain gradients is measured (``rounding``).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.contracts import Batch, State
from muse_core.errors import Halted
from muse_core.evaluation.cross_entropy import like
from muse_core.out_of_memory import ran_out
from muse_core.training.forward import Forward
from muse_core.training.rounding import MOVES, NEAR, beyond, moved, rounding_of, square, widened
from muse_core.training.shards import own_part
from muse_core.training.train_state import ObjectiveTensors, RandomState, TrainState, kept

NOTHING = 2.0**-23
"""Of the norm of all gradients together, below which nothing is a difference: some are zero but for rounding."""
ASLEEP, AWAKE = 1e-3, 0.02
"""A parameter that is nowhere larger than the first is given noise of the second size meanwhile: behind a projection
that starts at zero every gradient is zero, and a lost one would not be seen."""
NAMED = 4
"""Parameters that a refusal names at most."""
OFF = "set train.compile = false, or use a newer torch (train.check_compiled = false trains from them)"
TRACE = "aot_eager"
"""Backend of torch that runs the graphs that the compiler traced by the operations of the plain model."""


class DoesNotFit(Exception):
    """The plain pass takes more memory than there is: nothing was found out."""


@attrs.frozen(kw_only=True)
class Agreement:
    """How closely compiled gradients are the plain ones."""

    parameters: int
    unknown: int
    """Those of which nothing is known: without a gradient, or with one that rounding alone may undo."""
    largest: float
    """Of the others: the largest distance of a parameter's compiled gradient from the plain one, over that one's norm.
    """
    parameter: str
    """Where that is."""
    allowed: float
    """What was allowed there."""
    traced: bool
    """Whether the graphs that the compiler traced were asked, and not the code made of them, which draws random numbers
    of its own."""
    seconds: float

    def __str__(self) -> str:
        whose = "what the compiler traced (its code draws other random numbers)" if self.traced else "compiled code"
        about = f"{self.parameters} parameters" + (f", nothing known of {self.unknown}" if self.unknown else "")
        return (
            f"compiled gradients: {whose} has those of the plain model within {self.largest:.1e} of their norm "
            f"({self.parameter or 'none'}, {self.allowed:.1e} allowed; {about}; {self.seconds:.1f} s)"
        )


def check_compiled(state: TrainState, forward: Forward, piece: Batch, carried: State, whole: Tensor) -> Agreement:
    """Compare gradients of a micro-batch, as the loop gives it to ``forward``, with the plain model's. Weights, random
    state, buffers, objective and gradients (none) are afterwards as they were.

    A collective of all processes: each computes its own rows, and sums over all are judged. Raises Halted, naming
    parameters, and DoesNotFit.
    """
    began = time.perf_counter()
    check = _Check(state, forward, piece, carried, whole)
    try:
        with check.undisturbed():
            found = check.agreement()
    finally:
        if state.precision.device.type == "cuda":  # what the plain model takes is not what training takes
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(state.precision.device)
    return attrs.evolve(found, seconds=time.perf_counter() - began)


class _Check:
    """Passes of one micro-batch, each from the same random state."""

    def __init__(self, state: TrainState, forward: Forward, piece: Batch, carried: State, whole: Tensor):
        self.state, self.forward, self.ranks = state, forward, forward.ranks
        self.piece, self.carried, self.whole = piece, carried, whole
        self.parameters = state.optimizers.names
        self.generators = RandomState(state.precision.device)
        self.random = self.generators.state_dict()
        self.noise = torch.Generator(state.precision.device).manual_seed(0)
        self.plain: dict[str, Tensor] = {}
        """Gradients of the plain model by parameter, on the host; of this process's part."""
        self.effects: list[dict[str, float]] = []
        """Of each time that weights were moved: how far the plain gradients went."""

    def agreement(self) -> Agreement:
        sizes, draws = self._keep_plain()
        distances, traced = self._distances(), False
        if draws and beyond(distances, self._allowed(distances, sizes, moves=0)):
            distances, traced = self._distances(backend=TRACE), True
        allowed = self._allowed(distances, sizes)
        if far := beyond(distances, allowed):
            raise Halted(self._refusal(far, distances, sizes, allowed))
        known = [name for name, size in sizes.items() if 0 < size < math.inf and allowed[name] < size]
        worst = max(known, key=lambda name: distances[name] / sizes[name], default="")
        largest, limit = (distances[worst] / sizes[worst], allowed[worst] / sizes[worst]) if worst else (0.0, NEAR)
        return Agreement(
            parameters=len(sizes), unknown=len(sizes) - len(known), largest=largest, parameter=worst, allowed=limit,
            traced=traced, seconds=0.0,
        )

    def _keep_plain(self) -> tuple[dict[str, float], bool]:
        """Norms of the plain gradients, and whether the model draws random numbers."""
        squares: list[Tensor] = []

        def keep(name: str, gradient: Tensor | None) -> None:
            parameter = own_part(self.parameters[name])
            self.plain[name] = torch.zeros_like(parameter, device="cpu") if gradient is None else kept(gradient)
            squares.append(square(self.plain[name]))

        sizes = self._of_all(squares, self._pass(keep, plain=True))
        after = self.generators.state_dict()
        draws = not all(torch.equal(after[name], self.random[name]) for name in after)
        return sizes, any(self.ranks.gather(draws))

    def _distances(self, *, plain: bool = False, backend: str | None = None) -> dict[str, float]:
        """How far the gradients of a pass are from the plain ones."""
        squares: list[Tensor] = []

        def compare(name: str, gradient: Tensor | None) -> None:
            expected = self.plain[name]
            squares.append(square(expected if gradient is None else gradient - expected.to(gradient.device)))

        return self._of_all(squares, self._pass(compare, plain=plain, backend=backend))

    def _allowed(
        self, distances: Mapping[str, float], sizes: Mapping[str, float], *, moves: int = MOVES
    ) -> dict[str, float]:
        """Of each parameter, how far compiled gradients may be from the plain ones. Weights are moved, up to ``moves``
        times, while some are farther."""
        finite = {name: size for name, size in sizes.items() if math.isfinite(size)}
        least = NOTHING * math.hypot(*finite.values())
        # What is not finite already is for the monitors that look at every step.
        allowed = {name: max(NEAR * size, least) if name in finite else math.inf for name, size in sizes.items()}
        for number in range(moves):
            if not beyond(distances, allowed):
                break
            if number == len(self.effects):
                with moved(self._own_weights(), rounding_of(self.state.precision), self.noise):
                    self.effects.append(self._distances(plain=True))
            allowed = widened(allowed, self.effects[number], finite)
        return allowed

    def _pass(
        self, visit: Callable[[str, Tensor | None], None], *, plain: bool = False, backend: str | None = None
    ) -> bool:
        """Forward and backward, and ``visit`` for each parameter's gradient; no gradient is left. False where a plain
        pass ran out of memory. Of divided weights all processes exchange within it, so that there it is an error."""
        self.generators.load_state_dict(self.random)
        how: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if plain or backend:
            how = torch.compiler.set_stance("force_eager" if plain else "default", force_backend=backend)
        try:
            with how, self.forward.apart():
                with self.state.precision():
                    result = self.forward(self.piece, self.carried)
                (result.total / like(result.total, self.whole)).backward()
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    visit(name, None if parameter.grad is None else own_part(parameter.grad))
        except (MemoryError, RuntimeError) as error:
            if not plain or self.ranks.shards > 1 or not ran_out(error):
                raise
            return False
        finally:
            for parameter in self.state.model.parameters():
                parameter.grad = None
        return True

    def _of_all(self, squares: Sequence[Tensor], fits: bool) -> dict[str, float]:
        """Norms by parameter from the squares of every process's part. Raises DoesNotFit where one of them has none."""
        told = self.ranks.gather([one.item() for one in squares] if fits else None)
        if any(one is None for one in told):
            raise DoesNotFit
        return {name: math.sqrt(sum(one[place] for one in told)) for place, name in enumerate(self.parameters)}

    def _own_weights(self) -> dict[str, Tensor]:
        """This process's part of every parameter, in its memory."""
        with torch.no_grad():
            found = {name: own_part(parameter.detach()) for name, parameter in self.state.model.named_parameters()}
        return {name: own for name, own in found.items() if own.numel()}

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, weights that are next to zero are not; afterwards all is as it was."""
        state, buffers = self.state, {name: value.clone() for name, value in self.state.model.named_buffers()}
        objective = copy.deepcopy(state.objective.state_dict())
        holder = ObjectiveTensors(state.objective, state.precision.device)
        tensors = {name: kept(value) for name, value in holder.state_dict().items()}
        woken: dict[str, Tensor] = {}
        weights = self._own_weights()
        try:
            for name, own in weights.items():
                if own.abs().max() < ASLEEP:
                    woken[name] = kept(own)
                    own.add_(torch.randn(own.shape, dtype=own.dtype, device=own.device, generator=self.noise) * AWAKE)
            yield
        finally:
            for name, before in woken.items():
                weights[name].copy_(before)
            for name, value in state.model.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])
            state.objective.load_state_dict(objective)
            holder.load_state_dict(tensors)
            self.generators.load_state_dict(self.random)

    def _order(self) -> dict[str, int]:
        """Parameter → when the plain model calls the module that it belongs to."""
        calls: dict[str, int] = {}

        def called(name: str) -> Callable[..., None]:
            def note(*_: Any) -> None:
                calls.setdefault(name, len(calls))

            return note

        hooks = [one.register_forward_pre_hook(called(name)) for name, one in self.state.model.named_modules() if name]
        try:
            self._pass(lambda name, gradient: None, plain=True)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for name in self.parameters:
            owner = name
            while owner and owner not in calls:  # some are read by the module around them
                owner = owner.rpartition(".")[0]
            found[name] = calls.get(owner, -1)
        return found

    def _refusal(
        self, beyond: Sequence[str], distances: Mapping[str, float], sizes: Mapping[str, float],
        allowed: Mapping[str, float],
    ) -> str:
        order = self._order()
        nearest = max(beyond, key=lambda name: order[name])

        def told(name: str) -> str:
            owner = type(self.state.model.get_submodule(name.rpartition(".")[0])).__name__
            distance, norm = distances[name], f"{sizes[name]:.1e}"
            return f"{name} ({owner}) is {distance:.1e} away, its norm is {norm} and {allowed[name]:.1e} is allowed"

        def share(name: str) -> float:
            found = distances[name] / sizes[name] if sizes[name] else math.inf
            return math.inf if math.isnan(found) else found

        largest = sorted(beyond, key=share, reverse=True)[:NAMED]
        more = f"; and {len(beyond) - len(largest)} more" if len(beyond) > len(largest) else ""
        return (
            f"compiled gradients: train.compile changes those of {len(beyond)} of {len(sizes)} parameters: "
            f"{'; '.join(map(told, largest))}{more}. Gradients flow from the output, and nearest to it is {nearest}: "
            f"the fault is there or in what reads it. No step was made from them - {OFF}"
        )
