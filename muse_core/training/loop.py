"""The one loop. It reads top to bottom; what it calls is in the files beside it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from torch import Tensor

from muse_core.contracts import Action, Batch, State, Verdict
from muse_core.data.batches import Ahead, TrainingData
from muse_core.errors import Halted, MuseError
from muse_core.evaluation.cross_entropy import like
from muse_core.evaluation.held_out import HeldOut
from muse_core.fault_injection import fault_point
from muse_core.metrics.accumulator import MetricAccumulator, Packed, combined, read
from muse_core.metrics.console import Display
from muse_core.metrics.recorder import Telemetry
from muse_core.recipe.schema import Recipe
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.compiled_gradients import DoesNotFit, check_compiled
from muse_core.training.cuda_graph import Passes, RecordedCalls, RecordedPasses
from muse_core.training.forward import Forward, detached, of_ranks
from muse_core.training.optimizers import clip, gradient_numbers, state_numbers
from muse_core.training.placed import Placed, place
from muse_core.training.rounding import rounding_of
from muse_core.training.schedules import Rates
from muse_core.training.shards import own_part
from muse_core.training.silent import Silent, sentence, watched
from muse_core.training.stop import Stop
from muse_core.training.train_state import Incidents, TrainState

STEEP = 100.0
"""Times train.clip_norm from which the first gradient is warned of."""


@attrs.define(kw_only=True)
class Loop:
    """Everything that a stage's training needs, and where it is."""

    recipe: Recipe
    state: TrainState
    """Model, optimisers, monitors, objective and where they are; what a checkpoint keeps."""
    forward: Forward
    """The objective of the state's model or of its compiled form."""
    data: TrainingData
    byte_lengths: np.ndarray
    incidents: Incidents
    checkpoints: Checkpointer
    records: Telemetry
    display: Display
    stop: Stop
    evaluate: Callable[[], HeldOut | None]
    judge_evaluation: Callable[[int, float], None] = lambda step, loss: None
    """Given the step and the loss of an evaluation once it is recorded; raises Halted to end the run."""
    stream_period: int = 1
    """Least common multiple of the model's periods."""
    evaluation_due: bool = False
    """Whether the evaluation that belongs to the present step is still to be made: the attempt before ended between the
    checkpoint and it."""

    unchecked: bool = attrs.field(default=attrs.Factory(lambda self: self._compiled(), takes_self=True))
    """Whether gradients of compiled code are still to be compared with those of the plain model."""
    passes: Passes = attrs.field(default=attrs.Factory(lambda self: self._recorded(), takes_self=True))
    """``_pass``, or a recording of it."""
    updates: RecordedCalls = attrs.field(factory=lambda: RecordedCalls("an optimizer's updates"))
    """Of steps whose passes are replayed."""
    rates: Rates = attrs.field(default=attrs.Factory(lambda self: Rates(self.recipe.train), takes_self=True))
    """Share of the peak rate by the number of updates."""
    ahead: Ahead = attrs.field(factory=Ahead)
    """The next batch of ``data``."""
    placed: Placed | None = None
    """The next batch where its step will read it."""
    silent: Silent = attrs.field(default=attrs.Factory(lambda self: self._silent(), takes_self=True))
    """What no gradient has reached yet."""

    def _silent(self) -> Silent:
        state = self.state
        return Silent(watched(state.model, self.recipe.model, state.optimizers.names))

    def _compiled(self) -> bool:
        return bool(self.recipe.train.compile) and self.recipe.train.check_compiled

    def _recorded(self) -> Passes:
        """Where ``train.cuda_graph`` asks for it, gradients come from a recording."""
        if not self.recipe.train.cuda_graph:
            return self._pass
        return RecordedPasses(
            self._pass, self.state.optimizers.names, self.forward.ranks, rounding=rounding_of(self.state.precision),
            recomputes=self.recipe.train.activation_checkpointing, warn=self._warn,
        )

    @property
    def done(self) -> bool:
        """Whether the planned steps are done, or the objective has come to an end before."""
        return self.state.at.step >= self.recipe.train.steps or bool(getattr(self.state.objective, "finished", False))

    def progress(self) -> dict[str, int]:
        """Steps, and what of them counted, as ``summary.json`` has it."""
        at = self.state.at
        return {
            "steps": at.step, "planned_steps": self.recipe.train.steps, "accepted_steps": at.accepted,
            "train_tokens": at.tokens,
        }

    def run(self) -> None:
        """Train from ``at`` to the planned number of steps, or until a stop is requested.

        Raises Halted when a monitor halts or damage cannot be undone.
        """
        try:
            self._train()
        finally:
            if isinstance(self.passes, RecordedPasses):
                self.passes.release()
                self.state.optimizers.calls = None
                self.updates.recordings.clear()

    def _train(self) -> None:
        train, state, at = self.recipe.train, self.state, self.state.at
        parameters = list(state.optimizers.names.values())
        state.model.train()
        if self.evaluation_due and self._evaluation():
            return
        row_started, row_tokens = time.perf_counter(), 0
        while not self.done:
            started = time.perf_counter()
            batch = fault_point("batch", self.ahead.batch(self.data, at.step, self.incidents.quarantine))
            values = self._gradients(batch)
            verdict = state.monitors.judge(at.step, values, self._warn)
            if verdict.action is Action.HALT:
                raise self._halted("at", verdict, values)
            if verdict.action is not Action.CONTINUE:
                self._note(verdict, values)
            if verdict.action is Action.ROLLBACK:
                state.stream_state.reject()
                self.checkpoints.restore(verdict)
                continue
            if verdict.action is Action.SKIP:
                state.stream_state.reject()
            else:
                if at.step == 0:
                    self._say_steep_start(values["gradient_norm"])
                # Another objective may have parameters that it does not train.
                if "cross_entropy" in values and (names := self.silent.accepted(at.accepted)):
                    self._warn(sentence(names), parameters=list(names))
                clip(parameters, values["gradient_norm"], train.clip_norm)
                state.optimizers.step(self.rates(at.accepted) * self.incidents.rate)
                fault_point("post_step", state.model)
                at.accepted += 1
                at.tokens += int(values["tokens"])
                state.stream_state.accept()
                if hasattr(state.model, "update_statistics"):
                    state.model.update_statistics(values, at.accepted / train.steps)
            state.optimizers.zero_grad()
            at.step += 1
            at.seconds += time.perf_counter() - started
            row_tokens += int(values["tokens"])
            row = None
            if at.step % train.log_every == 0 or at.step == 1 or self.done:
                now = time.perf_counter()
                row = self.records.metrics(self._row(values, row_tokens / (now - row_started)))
                row_started, row_tokens = now, 0
            self.display.step(at.step, row)
            pause = time.perf_counter()
            if self._between(values):
                break
            row_started += time.perf_counter() - pause

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Forward and backward over this rank's micro-batches; every number of the step, read once."""
        state, forward = self.state, self.forward
        recorded = self.passes if isinstance(self.passes, RecordedPasses) else None
        if recorded is None:
            self._prepare()
        forward.begin(self.recipe.seed, state.at.step)
        here, self.placed = self.placed, None
        if here is None or here.batch is not batch:
            here = self._place(batch)
        carried = [state.stream_state.of(index) for index in range(len(here.pieces))]
        if self.unchecked:
            self._check_compiled(here.pieces[0], carried[0], here.whole)
        packed, proposed = self.passes(here.pieces, carried, here.whole)
        if recorded is not None:  # not before: a thread that makes a batch would keep this one from launching them
            self._prepare()
        # A plain step is plain in all its parts.
        state.optimizers.calls = self.updates if recorded is not None and recorded.replayed else None
        for one in proposed:
            state.stream_state.propose(one)
        # Outside the passes, which may be recorded: weights, moments and the clock of probes are read as they are now.
        of_step = self._of_gradients() | state.monitors.measure("step", {})
        packed = packed.with_values(of_step)
        self._place_next()  # while the device computes: reading its numbers waits for it
        values = self._of_all(packed)
        values["rollbacks"] = float(self.incidents.recent(state.at.step))
        values["bytes"] = here.read_bytes
        return values

    def _prepare(self) -> None:
        """Begin with the next step's batch."""
        if self.state.at.step + 1 < self.recipe.train.steps:
            self.ahead.prepare(self.data, self.state.at.step + 1, self.incidents.quarantine)

    def _place(self, batch: Batch) -> Placed:
        return place(
            batch, self.forward, self.state.precision.device, micro_batch=self.recipe.train.micro_batch,
            period=self.stream_period if self.state.stream_state.streams else None, byte_lengths=self.byte_lengths,
        )

    def _place_next(self) -> None:
        """The batch that is made ahead, so that nothing of it is left to do between this step's verdict and the next
        step's passes. A step that reads another one, as behind a rollback, places that itself."""
        self.ahead.wait()  # what follows a step may read the same data
        made = self.ahead.made()
        if made is not None:
            with contextlib.suppress(MuseError):  # raised when its step begins
                self.placed = self._place(made)

    def _check_compiled(self, piece: Batch, carried: State, whole: Tensor) -> None:
        """Raises Halted where compiled code has other gradients than the plain model."""
        row = {"event": "gate", "gate": "compiled gradients", "step": self.state.at.step}
        with self.forward.ranks.at_work("the check of compiled gradients"):
            try:
                found = check_compiled(self.state, self.forward, piece, carried, whole)
            except DoesNotFit:
                self.records.event(row | {"passed": None, "reason": "memory"})
                self._warn(
                    "compiled gradients were not checked: the plain model does not fit into the memory with a "
                    "micro-batch - lower train.micro_batch to have them checked"
                )
            else:
                self.records.event(row | {"passed": True} | attrs.asdict(found))
                self.display.say(str(found), "green")
        self.unchecked = False

    def _pass(self, pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor) -> tuple[Packed, list[State]]:
        """``cuda_graph.Passes``: gradients of a step from its micro-batches; the micro-batches' numbers, and what the
        state is after each. ``carried``: what each starts from."""
        state, forward, accumulator = self.state, self.forward, MetricAccumulator()
        proposed: list[State] = []
        for index, there in enumerate(pieces):
            with forward.gradients_of(index, len(pieces)):
                with state.precision():
                    result = fault_point("loss", forward(there, carried[index]))
                forward.ranks.mark("the backward pass")  # in which ranks wait for each other
                (result.total / like(result.total, whole)).backward()
            accumulator.add_result(result, there.loss_mask.sum())
            if state.stream_state.streams:
                proposed.append(detached(result.state))
        forward.sum_gradients()
        return accumulator.packed(), proposed

    def _of_gradients(self) -> dict[str, Tensor]:
        """Numbers of the step's gradients, and of the weights and moments that they will meet."""
        state = self.state
        fault_point("gradient", state.model)
        gradients = {n: p.grad for n, p in state.optimizers.names.items() if p.grad is not None}
        found = state.monitors.measure("gradients", {n: own_part(g) for n, g in gradients.items()})
        sizes = self.forward.norms(list(gradients.values()))
        self.silent.step(tuple(gradients), sizes)
        found |= state.monitors.measure("norms", {"names": tuple(gradients), "norms": sizes})
        return found | gradient_numbers(sizes) | state_numbers(map(own_part, state.optimizers.held()))

    def _of_all(self, packed: Packed) -> dict[str, float]:
        """The numbers of the step, and whether it is to be the last, as all ranks have them."""
        own = packed.numbers()  # waits for the device
        if self.forward.ranks.size == 1:
            return read(own)
        parts = self.forward.ranks.exchange((own, self.stop.flags(), self.forward.telemetry()))
        self.stop.settle([flags for _, flags, _ in parts])
        return read(combined([numbers for numbers, _, _ in parts])) | of_ranks([told for _, _, told in parts])

    def _say_steep_start(self, norm: float) -> None:
        """Warn where the first gradient is so large that clipping leaves next to nothing of all others."""
        limit = self.recipe.train.clip_norm
        if norm <= STEEP * limit:
            return
        gradients = {n: p.grad for n, p in self.state.optimizers.names.items() if p.grad is not None}
        sizes = self.forward.norms(list(gradients.values())).tolist()
        largest = sorted(zip(sizes, gradients, strict=True), reverse=True)[:3]
        named = ", ".join(f"{name} {size:.3g}" for size, name in largest)
        self._warn(
            f"the gradient's norm at the first step is {norm:.3g}, {norm / limit:.3g} × train.clip_norm: clipping "
            f"leaves little of what other weights should learn - let these layers start tamer: {named}"
        )

    def _between(self, values: Mapping[str, float]) -> bool:
        """Probes, checkpoint and evaluation that are due after a step; True when the loop should end."""
        recipe, state, step = self.recipe, self.state, self.state.at.step
        last = self.done
        stopping = self.stop.requested  # read once: a signal may come between two reads
        # Before the checkpoint, also when stopping: what probes find is part of the state, and certifies it.
        probed = state.monitors.probe(step, values, state.model, state.precision, self._warn, self.forward.ranks)
        if probed:
            self.records.metrics({"event": "probe", "step": step} | probed)
        if stopping or last or step % recipe.checkpoint.every == 0:
            self.checkpoints.commit()
        if stopping or last:
            self.checkpoints.settle()
        if probed and last:
            self._last_word(values, probed)
        if stopping:
            return True
        return self._evaluation() if evaluates(recipe, step) else False

    def _evaluation(self) -> bool:
        """On validation text; True when the loop should end, because a signal came."""
        measured = self.evaluate()
        self.evaluation_due = False
        if measured is not None:
            self.records.metrics({"event": "eval", "step": self.state.at.step} | evaluation_row(measured))
            bits, accuracy = f"{measured.bits_per_byte:.3f} bits/byte", f"accuracy {measured.accuracy:.4f}"
            self.display.say(
                f"step {self.state.at.step}/{self.recipe.train.steps}  held out: loss {measured.loss:.4f}  "
                f"{bits if self.display.of_text else accuracy}"
            )
            self.judge_evaluation(self.state.at.step, measured.loss)
        if self.stop.interrupted:
            self.checkpoints.commit()
            self.checkpoints.settle()
            return True
        return False

    def _last_word(self, values: Mapping[str, float], probed: Mapping[str, float]) -> None:
        """Probes are judged with the step after them; those after the last step are judged here, where only a halt
        means anything. Raises Halted."""
        names = {key.partition("/")[0] for key in probed}
        verdict = self.state.monitors.judge(self.state.at.step, values, self._warn, only=names)
        if verdict.action is Action.HALT:
            raise self._halted("after", verdict, values)

    def _row(self, values: Mapping[str, float], tokens_per_second: float) -> dict[str, Any]:
        hidden = ("tokens", "bytes", "total", "cross_entropy")
        rest = {key: value for key, value in values.items() if key not in hidden and key != "loss"}
        # Another objective's loss is no cross-entropy: it has neither perplexity nor bits.
        entropy = values["loss"] if "cross_entropy" in values else math.nan
        return {
            "event": "train",
            "step": self.state.at.step,
            "accepted": self.state.at.accepted,
            "loss": values["loss"],
            "perplexity": math.exp(min(entropy, 700.0)) if math.isfinite(entropy) else math.nan,
            "bits_per_byte": entropy * values["tokens"] / math.log(2) / max(values["bytes"], 1.0),
            "learning_rate": self.recipe.train.learning_rate
            * self.rates(max(self.state.at.accepted - 1, 0))
            * self.incidents.rate,
            "tokens_per_second": tokens_per_second,
            "train_tokens": self.state.at.tokens,
            "seconds": self.state.at.seconds,
        } | rest

    def _halted(self, when: str, verdict: Verdict, values: Mapping[str, float]) -> Halted:
        reason = f"halted {when} step {self.state.at.step} by {verdict.monitor}: {verdict.reason}"
        return Halted(reason, self._facts(verdict, values))

    def _facts(self, verdict: Verdict, values: Mapping[str, float]) -> dict[str, Any]:
        return {
            "step": self.state.at.step,
            "monitor": verdict.monitor,
            "reason": verdict.reason,
            "onset": verdict.onset,
            "loss": values["loss"],
            "gradient_norm": values["gradient_norm"],
        }

    def _note(self, verdict: Verdict, values: Mapping[str, float]) -> None:
        self.records.event({"event": verdict.action.name.lower()} | self._facts(verdict, values))
        self.display.say(
            f"step {self.state.at.step}: {verdict.action.name.lower()} ({verdict.monitor}: {verdict.reason})", "yellow"
        )

    def _warn(self, text: str, **more: Any) -> None:
        self.records.event({"event": "warning", "step": self.state.at.step, "reason": text} | more)
        self.display.say(f"warning: {text}", "yellow")


def evaluates(recipe: Recipe, step: int) -> bool:
    """Whether an evaluation belongs to the state after ``step`` steps; the last step has the final one."""
    return 0 < step < recipe.train.steps and step % recipe.evaluate.every == 0


def evaluation_row(measured: HeldOut) -> dict[str, Any]:
    """Keys of an evaluation in metrics.jsonl."""
    return {
        "loss": measured.loss,
        "perplexity": measured.perplexity,
        "bits_per_byte": measured.bits_per_byte,
        "bits_per_byte_low": measured.low,
        "bits_per_byte_high": measured.high,
        "accuracy": measured.accuracy,
        "tokens": measured.tokens,
        "bytes": measured.bytes,
    } | dict(measured.metrics)
