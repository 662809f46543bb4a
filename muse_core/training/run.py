"""A run from its directory to its summary: gate, stages in order, held-out evaluation, report."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from muse_core.building import construct
from muse_core.component import Use
from muse_core.errors import Halted, MuseError, PluginError, RecipeError, typed
from muse_core.evaluation.held_out import HeldOut
from muse_core.evaluation.references import Judge
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records
from muse_core.metrics.recorder import Telemetry
from muse_core.metrics.sinks import SinkContext
from muse_core.plugins.raised import raised
from muse_core.recipe.resolved import as_table
from muse_core.storage import canonical_json
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.architectures import adopt, latest
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.conversion import Conversion
from muse_core.training.forward import make_forward
from muse_core.training.loop import Loop, evaluates, evaluation_row
from muse_core.training.monitors import MonitorGroup
from muse_core.training.optimizers import make_optimizers
from muse_core.training.ranks import agree_on_weights
from muse_core.training.recordable import require_recordable, require_steady
from muse_core.training.results import held_out_table, summary_table
from muse_core.training.setup import Setup, settle_process
from muse_core.training.stop import Interrupted, Stop
from muse_core.training.summary import RunSummary
from muse_core.training.train_state import Incidents, StreamState, TrainState
from muse_core.training.trained import initial_weights


@contextlib.contextmanager
def determined(wanted: bool) -> Iterator[None]:
    """With ``deterministic = true`` torch refuses operations that have no deterministic implementation here; that is
    said as a RecipeError."""
    try:
        yield
    except RuntimeError as error:
        if not wanted or "deterministic" not in str(error):
            raise
        what = str(error).partition(". ")[0]
        raise RecipeError(
            f"deterministic: {what} - set deterministic = false, or another kernel backend or layer"
        ) from error


class Run:
    """One attempt at a run in its directory, which the caller holds locked."""

    def __init__(
        self, setup: Setup, directory: RunDirectory, records: Records, display: Display, *, restart: bool = False,
        loaded: Callable[[], None] = lambda: None,
    ):
        """``restart`` allows to begin again at step 0 where the records are ahead of all checkpoints. ``loaded`` is
        called once a stage that trains stands where its newest checkpoint left it, before it trains."""
        settle_process(setup.recipe)
        self.setup = setup
        self.restart = restart
        self.loaded = loaded
        self.directory = directory
        self.so_far = RunSummary()
        earlier = self.so_far.read(directory.metrics)
        self.records = Telemetry(records, earlier, self.so_far, lambda sentence: display.say(sentence, "yellow"))
        deque(self.so_far.read(directory.events), maxlen=0)
        self.recorded = self.so_far.last_step
        """Last step in the metrics of earlier attempts."""
        self.display = display
        display.of_text = setup.corpus.is_text
        self.folder = directory.path
        """Where the checkpoints of the present architecture are."""
        self.trained: dict[str, int] = {}
        """``Loop.progress`` of the last stage that trained, in this attempt or before the present architecture."""
        self.started = time.monotonic()
        self.judge = Judge(setup)

    def go(self) -> dict[str, Any]:
        """Do everything that is left to do; returns the summary. Raises Halted, Interrupted or another MuseError."""
        with self.records:
            return self._go()

    def _go(self) -> dict[str, Any]:
        recipe = self.setup.recipe
        self._say_foreign_rows()
        first = self._adopt_latest()
        for notice in self.setup.corpus.notices:
            self.records.event({"event": "notice", "reason": notice})
            self.display.say(notice, "yellow")
        if not Checkpoints(self.folder).generations():
            self._tell(initial_weights(self.setup, self.display), {"source": str(recipe.init.from_)})
        self._gate()
        self._open_sinks()
        with Stop(recipe.train.max_seconds, self.setup.ranks) as stop:
            loop = None
            for number, use in enumerate(recipe.stages):
                if number < first:
                    continue
                stage = construct(use, self.setup)
                loop = self._train(number, use, stage, stop) or loop
                stop.agree()
                if stop.requested:
                    break
                self._finish(number, use, stage)
            self._leave_if_interrupted(stop, loop)
            self.display.finish()
            self._check_trained()
            measured = self._final_evaluation(stop)
            if measured is None:
                self._leave_if_interrupted(stop, loop)
            assert measured is not None, "only an interruption cuts an evaluation short"
            summary = self._summary(loop, measured)
            try:
                self._judge_end(summary)
            finally:
                self.records.sinks.end(summary)
            if stop.signal is not None:
                raise Interrupted(stop.signal, f"interrupted at the very end; the run is done: {self.directory.path}")
        return summary

    def _open_sinks(self) -> None:
        """Sinks hear of a run that the gate lets begin, from rank 0: a start that it refuses leaves nothing."""
        if self.setup.ranks.rank:
            return
        recipe = self.setup.recipe
        self.records.sinks.open(recipe, SinkContext(
            run=self.directory.path, name=recipe.name, seed=recipe.seed, recipe=as_table(recipe, self.setup.registry),
            attempt=self.records.records.attempt,
        ))

    def _say_foreign_rows(self) -> None:
        for name, foreign in self.so_far.foreign.items():
            some = ", ".join(map(str, foreign[:5])) + (", …" if len(foreign) > 5 else "")
            reason = f"{name}: {len(foreign)} rows are not this run's and are passed over (lines {some})"
            self.records.event({"event": "notice", "reason": reason})
            self.display.say(reason, "yellow")

    def _gate(self) -> None:
        ranks = self.setup.ranks
        sentence, warned = "", list[str]()
        with determined(self.setup.recipe.deterministic), ranks.at_work("the causality gate"):
            # Its refusal ends every rank. What is divided is computed by all.
            if ranks.rank == 0 or ranks.shards > 1:
                sentence = self.setup.causality_gate(warned.append)
            ranks.gather(None)
        self.records.event({"event": "gate", "gate": "causality", "passed": True})
        self.display.say(sentence, "green")
        for reason in warned:
            self.records.event({"event": "notice", "reason": reason})
            self.display.say(f"warning: {reason}", "yellow")

    def _check_trained(self) -> None:
        """The gate has seen the weights that a run began with. Raises Halted where those that it ends with let outputs
        depend on later tokens: no held-out number is made of them."""
        ranks, split, judged = self.setup.ranks, self.setup.recipe.evaluate.split, []
        with determined(self.setup.recipe.deterministic), ranks.at_work("the causality check of the trained model"):
            if ranks.rank == 0 or ranks.shards > 1:
                leak, judged = self.setup.held_out_leak(split)
                if leak is not None:
                    raise Halted(
                        f"{leak}. The gate, which looks at the weights that a run begins with and at rows of the "
                        "training length, did not find it. The trained weights are kept and not measured: they read "
                        f"what they should predict. muse eval {typed(self.directory.path)} --suite causality makes all "
                        "checks"
                    )
            ranks.gather(None)
        if judged:
            self.records.event(
                {"event": "gate", "gate": "causality", "weights": "trained", "passed": True, "lengths": judged}
            )

    def _train(self, number: int, use: Use, stage: Any, stop: Stop) -> Loop | None:
        """The loop of one stage, from where it stands to its end; None for a stage that does not train."""
        setup = self.setup
        self.records.begin(number)
        objective = self._ask(use, lambda: stage.objective(setup.model, setup.training_data))
        if objective is None:
            self.display.say(f"stage {number}: {use.name}, without training")
            return None
        loop = self.loop(number, use, stage, objective, stop)
        at = loop.state.at
        with setup.ranks.at_work("setting up"):
            to_do = loop.checkpoints.resume()
        at.seconds = self.so_far.seconds_until(number, at.step, loop.recipe.train.log_every)
        self.loaded()
        if to_do:
            loop.evaluation_due = evaluates(loop.recipe, at.step) and not self.so_far.evaluated(number, at.step)
            self.display.start(loop.recipe.train.steps, at.step)
            with determined(self.setup.recipe.deterministic):
                try:
                    loop.run()
                except BaseException:
                    # The first error is the one to report, whatever torch or a lost process raises in the writing.
                    with contextlib.suppress(Exception):
                        loop.checkpoints.settle()
                    raise
        self.trained = loop.progress()
        return loop

    def loop(self, number: int, use: Use, stage: Any, objective: Any, stop: Stop) -> Loop:
        """The loop of one stage at its start; ``loop.checkpoints.resume()`` puts it where it stands."""
        setup, recipe = self.setup, self.setup.recipe
        make_data = setup.training_data
        if hasattr(stage, "settings"):
            recipe = attrs.evolve(recipe, train=self._ask(use, lambda: stage.settings(recipe.train)))
            make_data = lambda: self._ask(use, lambda: stage.batches(self.directory.path))  # noqa: E731
        for name, parameter in setup.model.named_parameters():
            parameter.requires_grad_(self._ask(use, lambda name=name: stage.trainable(name)))
        require_recordable(recipe, setup.ranks.size)  # a stage may have settings of its own
        if recipe.train.cuda_graph:
            require_steady(setup.model, objective)
        agree_on_weights(setup)
        forward = make_forward(setup.model, objective, recipe, setup.ranks)  # before the optimisers take its weights
        state = TrainState(
            stage=number,
            train=recipe.train,
            model=setup.model,
            optimizers=make_optimizers(setup.model, recipe.train, stage.trainable, setup.kernels),
            monitors=MonitorGroup(setup.monitors()),
            objective=objective,
            precision=setup.precision,
            stream_state=StreamState(recipe.data.order == "streams", setup.precision.device),
        )
        data, incidents = make_data(), Incidents(number, self.so_far.incidents)
        checkpointer = Checkpointer(
            Checkpoints(self.folder, keep=recipe.checkpoint.keep, quota=recipe.checkpoint.quota,
                        disk=self.directory.disk, ranks=setup.ranks.channel()),
            state,
            data=data,
            incidents=incidents,
            records=self.records,
            display=self.display,
            digests={"data": setup.corpus.digest},
            # Rows do not say how far a later stage had come.
            recorded=0 if number else self.recorded,
            restart=self.restart,
            check=self.directory.check,
            ranks=setup.ranks,
            background=recipe.checkpoint.background,
        )
        return Loop(
            recipe=recipe,
            state=state,
            forward=forward,
            data=data,
            byte_lengths=setup.corpus.byte_lengths,
            incidents=incidents,
            checkpoints=checkpointer,
            records=self.records,
            display=self.display,
            stop=stop,
            evaluate=lambda: self._evaluate(stop, "validation", recipe.evaluate.tokens),
            judge_evaluation=self.judge.evaluated,
            stream_period=setup.stream_period,
        )

    def _finish(self, number: int, use: Use, stage: Any) -> None:
        """Keep what a stage has measured, and go on with the architecture that it has made, if it did either."""
        measured = self._ask(use, lambda: stage.measured() if hasattr(stage, "measured") else {})
        if measured:
            self._write(f"evaluation-{number}.json", measured)
            self.display.say(f"{use.name}: {', '.join(measured)} in evaluation-{number}.json")
        made = self._ask(use, lambda: stage.finish(self.setup.model))
        if made is None:
            return
        table, weights = made
        self.display.finish()
        partial = getattr(stage, "partial", False)
        before = self._perplexity() if partial else math.nan
        self.setup, self.folder, conversion = adopt(
            self.directory, self.setup, number, use.name, table, weights, partial=partial, trained=self.trained
        )
        self.judge = Judge(self.setup)  # whose text and tokens may be others
        self.display.say(f"{use.name} made a new architecture: {self.folder}")
        if conversion is not None:
            perplexity = {"perplexity_before": before, "perplexity_after": self._perplexity()}
            self._tell(conversion, {"source": f"stage {number}"} | perplexity)
        self._gate()

    def _perplexity(self) -> float:
        """Of validation text, with the weights as they are."""
        measured = self.setup.evaluate("validation", self.setup.recipe.evaluate.tokens)
        assert measured is not None, "nothing interrupts it"
        return measured.perplexity

    def _tell(self, conversion: Conversion | None, more: dict[str, Any]) -> None:
        """Print and record what became of the weights of another model."""
        if conversion is None:
            return
        self.display.table("Weights", conversion.rows())
        if "perplexity_after" in more:
            self.display.say(
                f"validation perplexity {more['perplexity_before']:.3f} before, {more['perplexity_after']:.3f} after"
            )
        self.records.event(conversion.event() | more)

    def _adopt_latest(self) -> int:
        """Take up the architecture that the last finished stage made; the number of the stage to go on with."""
        found = latest(self.directory, self.setup)
        if found is None:
            return 0
        number, self.setup, self.folder, self.trained = found
        self.judge = Judge(self.setup)
        return number + 1

    def _ask(self, use: Use, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except MuseError:
            raise
        except Exception as error:
            raise PluginError(
                f"stage {use.name!r} of {use.distribution} {use.version}: {raised(error, use.implementation)}"
            ) from error

    def _final_evaluation(self, stop: Stop) -> dict[int, HeldOut] | None:
        evaluate = self.setup.recipe.evaluate
        measured: dict[int, HeldOut] = {}
        for multiple in evaluate.lengths:
            result = self._evaluate(stop, evaluate.split, evaluate.final_tokens, multiple=multiple)
            if result is None:
                return None
            length = multiple * self.setup.recipe.train.sequence_length
            self.records.metrics(
                {"event": "final", "split": evaluate.split, "length": length} | evaluation_row(result)
            )
            measured[length] = result
            if len(measured) == 1:
                names = self.setup.corpus.described.get(evaluate.split)
                self._write("held_out.json", held_out_table(evaluate.split, length, result.rows, names), indent=None)
        return measured

    def _evaluate(self, stop: Stop, split: str, tokens: int, **how: Any) -> HeldOut | None:
        """``Setup.evaluate`` until a signal comes; a signal of one rank is then one of all."""
        found = self.setup.evaluate(split, tokens, interrupted=lambda: stop.received is not None, **how)
        stop.agree()
        return found

    def _leave_if_interrupted(self, stop: Stop, loop: Loop | None) -> None:
        if stop.signal is None:
            return
        self.display.finish()
        self.records.event({"event": "interrupted", "signal": stop.signal, "step": loop.state.at.step if loop else 0})
        raise Interrupted(
            stop.signal,
            f"interrupted; everything is saved. Go on with: muse-run --resume {typed(self.directory.path)}",
        )

    def _summary(self, loop: Loop | None, measured: dict[int, HeldOut]) -> dict[str, Any]:
        summary = summary_table(
            self.setup, loop, measured, trained=self.trained, so_far=self.so_far, references=self.judge.references(),
            seconds=time.monotonic() - self.started,
        )
        self._write("summary.json", summary)
        return summary

    def _write(self, name: str, table: Mapping[str, Any], indent: int | None = 2) -> None:
        told = json.dumps(canonical_json.spelled(table), indent=indent, allow_nan=False)
        self.directory.write(name, told + "\n")

    def _judge_end(self, summary: Mapping[str, Any]) -> None:
        """Say and record that the model has not learned what counting gives. Raises Halted where the recipe asks."""
        loss, worse = summary["held_out_loss"], summary["not_better_than"]
        if worse:
            sentence = f"the model is {self.judge.references().worse_than(loss)}"
            self.records.event({"event": "not_learned", "step": summary["steps"], "not_better_than": worse,
                                "loss": loss, "reason": sentence})
            self.display.say(f"warning: {sentence}", "yellow")
        self.judge.ended(loss)
