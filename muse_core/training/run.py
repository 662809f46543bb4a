"""A run from its directory to its summary: gate, stages in order, held-out evaluation, report."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import torch

from muse_core.build import construct
from muse_core.component import Use
from muse_core.errors import MuseError, PluginError, RecipeError
from muse_core.evaluation.held_out import HeldOut
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records, own_rows
from muse_core.metrics.recorder import Telemetry
from muse_core.metrics.sinks import open_sinks
from muse_core.model.flops import active_parameters
from muse_core.plugins.raised import raised
from muse_core.recipe.schema import Evaluate
from muse_core.storage import canonical_json
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.architectures import adopt, latest
from muse_core.training.checkpointer import Checkpointer
from muse_core.training.conversion import Conversion
from muse_core.training.incidents import Incidents
from muse_core.training.loop import Loop, compiled, evaluation_row
from muse_core.training.monitors import MonitorGroup
from muse_core.training.optimizers import make_optimizers
from muse_core.training.setup import Setup
from muse_core.training.stop import Interrupted, Stop
from muse_core.training.trained import initial_weights


def evaluated_at(rows: Iterable[dict[str, Any]], stage: int, step: int) -> bool:
    """Whether the rows hold an evaluation of the state after ``step`` steps: one that no later stretch of training from
    before that step, as after a rollback, has made void."""
    found = False
    for row in rows:
        if row.get("stage", 0) != stage or "step" not in row:
            continue
        if row.get("event") == "eval" and row["step"] == step:
            found = True
        elif row["step"] < step:
            found = False
    return found


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
        self, setup: Setup, directory: RunDirectory, records: Records, display: Display, *, restart: bool = False
    ):
        """``restart`` allows to begin again at step 0 where the records are ahead of all checkpoints."""
        self.setup = setup
        self.restart = restart
        self.directory = directory
        self.records = Telemetry(records, own_rows(directory.metrics), open_sinks(setup.recipe, directory.path))
        self.display = display
        self.folder = directory.path
        """Where the checkpoints of the present architecture are."""
        self.started = time.monotonic()

    def go(self) -> dict[str, Any]:
        """Do everything that is left to do; returns the summary. Raises Halted, Interrupted or another MuseError."""
        try:
            return self._go()
        finally:
            self.records.close()

    def _go(self) -> dict[str, Any]:
        recipe = self.setup.recipe
        self._say_foreign_rows()
        rows = own_rows(self.directory.metrics)
        already = max((row.get("seconds", 0.0) for row in rows if row.get("event") == "train"), default=0.0)
        first = self._adopt_latest()
        for notice in self.setup.corpus.notices:
            self.records.event({"event": "notice", "reason": notice})
            self.display.say(notice, "yellow")
        if not Checkpoints(self.folder).generations():
            self._tell(initial_weights(self.setup, self.display), {"source": str(recipe.init.from_)})
        self._gate()
        with Stop(recipe.train.max_seconds) as stop:
            loop = None
            for number, use in enumerate(recipe.stages):
                if number < first:
                    continue
                stage = construct(use, self.setup)
                loop = self._train(number, use, stage, stop, already) or loop
                if stop.requested:
                    break
                self._finish(number, use, stage)
            self._leave_if_interrupted(stop, loop)
            self.display.finish()
            measured = self._final_evaluation(stop)
            if measured is None:
                self._leave_if_interrupted(stop, loop)
            assert measured is not None, "only an interruption cuts an evaluation short"
            summary = self._summary(loop, measured)
            if stop.signal is not None:
                raise Interrupted(stop.signal, f"interrupted at the very end; the run is done: {self.directory.path}")
        return summary

    def _say_foreign_rows(self) -> None:
        for path in (self.directory.metrics, self.directory.events):
            foreign: list[int] = []
            deque(own_rows(path, foreign), maxlen=0)
            if foreign:
                some = ", ".join(map(str, foreign[:5])) + (", …" if len(foreign) > 5 else "")
                reason = f"{path.name}: {len(foreign)} rows are not this run's and are passed over (sequence {some})"
                self.records.event({"event": "notice", "reason": reason})
                self.display.say(reason, "yellow")

    def _gate(self) -> None:
        with determined(self.setup.recipe.deterministic):
            sentence = self.setup.causality_gate()
        self.records.event({"event": "gate", "gate": "causality", "passed": True})
        self.display.say(sentence, "green")

    def _train(self, number: int, use: Use, stage: Any, stop: Stop, already: float) -> Loop | None:
        """The loop of one stage, from where it stands to its end; None for a stage that does not train."""
        setup = self.setup
        self.records.begin(number)
        objective = self._ask(use, lambda: stage.objective(setup.model, setup.training_data))
        if objective is None:
            return None
        loop = self.loop(number, use, stage, objective, stop)
        loop.at.seconds = already
        if loop.checkpoints.resume(loop):
            self.display.start(loop.recipe.train.steps, loop.at.step)
            with determined(self.setup.recipe.deterministic):
                loop.run()
        return loop

    def loop(self, number: int, use: Use, stage: Any, objective: Any, stop: Stop) -> Loop:
        """The loop of one stage at its start; ``loop.checkpoints.resume(loop)`` puts it where it stands."""
        setup, recipe = self.setup, self.setup.recipe
        data = setup.training_data
        if hasattr(stage, "settings"):
            recipe = attrs.evolve(recipe, train=self._ask(use, lambda: stage.settings(recipe.train)))
            data = lambda: self._ask(use, lambda: stage.batches(self.directory.path))  # noqa: E731
        for name, parameter in setup.model.named_parameters():
            parameter.requires_grad_(self._ask(use, lambda name=name: stage.trainable(name)))
        checkpoints = Checkpoints(self.folder, keep=recipe.checkpoint.keep, quota=recipe.checkpoint.quota)
        # Rows do not say their stage; later stages leave out how far they had come.
        steps = (row["step"] for row in own_rows(self.directory.metrics) if row.get("event") == "train")
        recorded = 0 if number else max(deque(steps, maxlen=1), default=0)
        return Loop(
            recipe=recipe,
            model=setup.model,
            forward_model=compiled(setup.model, recipe.train.compile),
            objective=objective,
            optimizers=make_optimizers(setup.model, recipe.train, stage.trainable),
            data=data(),
            byte_lengths=setup.corpus.byte_lengths,
            precision=setup.precision,
            monitors=MonitorGroup(setup.monitors()),
            incidents=Incidents(number, own_rows(self.directory.events)),
            checkpoints=Checkpointer(
                checkpoints,
                {"data": setup.corpus.digest},
                stage=number,
                recorded=recorded,
                restart=self.restart,
                check=self.directory.check,
                evaluated=lambda step: evaluated_at(own_rows(self.directory.metrics), number, step),
            ),
            records=self.records,
            display=self.display,
            stop=stop,
            evaluate=lambda: setup.evaluate(
                "validation", recipe.evaluate.tokens, interrupted=lambda: stop.interrupted
            ),
            stream_period=setup.stream_period,
        )

    def _finish(self, number: int, use: Use, stage: Any) -> None:
        """Go on with the architecture that a stage has made, if it made one."""
        made = self._ask(use, lambda: stage.finish(self.setup.model))
        if made is None:
            return
        table, weights = made
        self.display.finish()
        partial = getattr(stage, "partial", False)
        before = self._perplexity() if partial else math.nan
        self.setup, self.folder, conversion = adopt(
            self.directory, self.setup, number, use.name, table, weights, partial=partial
        )
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
        number, self.setup, self.folder = found
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
            result = self.setup.evaluate(
                evaluate.split, evaluate.final_tokens, multiple=multiple, interrupted=lambda: stop.interrupted
            )
            if result is None:
                return None
            length = multiple * self.setup.recipe.train.sequence_length
            self.records.metrics(
                {"event": "final", "split": evaluate.split, "length": length} | evaluation_row(result)
            )
            measured[length] = result
            if len(measured) == 1:
                self._keep_rows(evaluate, length, result)
        return measured

    def _keep_rows(self, evaluate: Evaluate, length: int, result: HeldOut) -> None:
        """``held_out.json``: what every evaluated sequence gave, for comparisons in pairs."""
        train = self.setup.recipe.train
        documents = self.setup.held_out_documents(
            evaluate.split, length, tokens=evaluate.final_tokens, span=train.sequence_length * max(evaluate.lengths)
        )
        assert len(documents) == len(result.rows.nats)
        rows = attrs.asdict(result.rows)
        columns = {"document": documents, "hits": rows.pop("correct")} | rows
        table = {"split": evaluate.split, "length": length} | {key: value.tolist() for key, value in columns.items()}
        self.directory.write("held_out.json", json.dumps(canonical_json.spelled(table), allow_nan=False) + "\n")

    def _leave_if_interrupted(self, stop: Stop, loop: Loop | None) -> None:
        if stop.signal is None:
            return
        self.display.finish()
        self.records.event({"event": "interrupted", "signal": stop.signal, "step": loop.at.step if loop else 0})
        raise Interrupted(
            stop.signal,
            f"interrupted; everything is saved. Go on with: muse-run --resume {self.directory.path}",
        )

    def _summary(self, loop: Loop | None, measured: dict[int, HeldOut]) -> dict[str, Any]:
        setup, recipe = self.setup, self.setup.recipe
        first = next(iter(measured.values()))
        at = attrs.asdict(loop.at) if loop else {"step": 0, "accepted": 0, "tokens": 0, "seconds": 0.0}
        memory = {}
        if setup.precision.device.type == "cuda":
            memory["peak_memory_bytes"] = torch.cuda.max_memory_allocated(setup.precision.device)
        spent, saved = (first.metrics.get(f"exit/flops_{what}_sum") for what in ("spent", "saved"))
        exit = {}
        if spent is not None and saved is not None:
            exit = {"held_out_flops_spent": spent, "held_out_flops_saved": saved}
        summary = {
            "name": recipe.name,
            "seed": recipe.seed,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "active_parameters": active_parameters(setup.model),
            "steps": at["step"],
            "planned_steps": loop.recipe.train.steps if loop else recipe.train.steps,
            "stopped_by_time": bool(loop and not loop.done),
            "accepted_steps": at["accepted"],
            "train_tokens": at["tokens"],
            "train_seconds": at["seconds"],
            "tokens_per_second": at["tokens"] / at["seconds"] if at["seconds"] else 0.0,
            "seconds": time.monotonic() - self.started,
            "held_out_split": recipe.evaluate.split,
            "held_out_loss": first.loss,
            "held_out_perplexity": first.perplexity,
            "held_out_bits_per_byte": first.bits_per_byte,
            "held_out_interval": [first.low, first.high],
            "held_out_tokens": first.tokens,
            "held_out_in_training": setup.corpus.in_training.get(recipe.evaluate.split),
            "held_out_accuracy": first.accuracy,
            "held_out_by_length": {str(length): result.bits_per_byte for length, result in measured.items()},
            "rollbacks": len(loop.incidents.known) if loop else 0,
            "probes": self._last_probes(),
            "device": str(setup.precision.device),
            "precision": setup.precision.dtype,
            "kernels": {key: chosen.backend for key, chosen in setup.kernels.selections.items()},
        } | memory | exit
        for row in own_rows(self.directory.events):
            if row.get("event") == "weights":
                wanted = ("source", "copied", "initialised", "unfit", "left", "perplexity_before", "perplexity_after")
                summary["weights"] = {key: row[key] for key in wanted if key in row}
        told = canonical_json.spelled(summary)
        self.directory.write("summary.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
        return summary

    def _last_probes(self) -> dict[str, dict[str, Any]]:
        """Monitor → the numbers of its last probe, with their step; what is not finite is spelled as in the records."""
        found: dict[str, dict[str, Any]] = {}
        for row in own_rows(self.directory.metrics):
            if row.get("event") != "probe":
                continue
            of_row: dict[str, dict[str, Any]] = {}
            for key, value in row.items():
                monitor, slash, number = key.partition("/")
                if slash:
                    of_row.setdefault(monitor, {"step": row["step"]})[number] = value
            found |= of_row
        return found
