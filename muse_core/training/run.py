"""A run from its directory to its summary: gate, stages in order, held-out evaluation, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from muse_core.component import Use
from muse_core.errors import MuseError, PluginError, StorageError
from muse_core.evaluation.held_out import HeldOut
from muse_core.model.build import construct
from muse_core.training.board import Board
from muse_core.training.carry import Carry
from muse_core.training.checkpoint import Checkpoints
from muse_core.training.incidents import Incidents
from muse_core.training.keeper import Keeper, load_weights
from muse_core.training.loop import Loop, compiled, evaluation_row
from muse_core.training.optimizers import make_optimizers
from muse_core.training.progress import Display
from muse_core.training.records import Records, read_rows
from muse_core.training.run_directory import RunDirectory
from muse_core.training.setup import Setup
from muse_core.training.stop import Interrupted, Stop


class Run:
    """One attempt at a run in its directory, which the caller holds locked."""

    def __init__(
        self, setup: Setup, directory: RunDirectory, records: Records, display: Display, digests: Mapping[str, str]
    ):
        self.setup = setup
        self.directory = directory
        self.records = records
        self.display = display
        self.digests = digests
        self.started = time.monotonic()

    def go(self) -> dict[str, Any]:
        """Do everything that is left to do; returns the summary. Raises Halted, Interrupted or another MuseError."""
        recipe = self.setup.recipe
        rows = read_rows(self.directory.metrics)
        already = max((row.get("seconds", 0.0) for row in rows if row.get("event") == "train"), default=0.0)
        for notice in self.setup.corpus.notices:
            self.records.event({"event": "notice", "reason": notice})
            self.display.say(notice, "yellow")
        self.setup.causality_gate()
        self.display.say("causality gate: no output depends on a later token or on another row", "green")
        self.records.event({"event": "gate", "gate": "causality", "passed": True})
        with Stop(recipe.train.max_seconds, already=already) as stop:
            self._monitors = Board(self.setup.monitors())
            loop = None
            for number, use in enumerate(recipe.stages):
                loop = self._stage(number, use, stop, already) or loop
                if stop.interrupted:
                    break
            self._leave_if_interrupted(stop, loop)
            self.display.finish()
            measured = self._final_evaluation(stop)
            self._leave_if_interrupted(stop, loop)
        assert measured is not None
        return self._summary(loop, measured, stop)

    def _stage(self, number: int, use: Use, stop: Stop, already: float) -> Loop | None:
        setup, recipe = self.setup, self.setup.recipe
        stage = construct(use, setup)
        try:
            objective = stage.objective(setup.model, setup.training_data)
            if objective is None:
                return None
            for name, parameter in setup.model.named_parameters():
                parameter.requires_grad_(stage.trainable(name))
        except MuseError:
            raise
        except Exception as error:
            raise PluginError(f"stage {use.name!r} of {use.distribution}: {type(error).__name__}: {error}") from error
        checkpoints = Checkpoints(
            self.directory.path, keep=recipe.checkpoint.keep, quota=recipe.checkpoint.quota
        )
        keeper = Keeper(checkpoints, self.digests, stage=number)
        incidents = Incidents(read_rows(self.directory.events))
        loop = Loop(
            recipe=recipe,
            model=setup.model,
            forward_model=compiled(setup.model, recipe.train.compile),
            objective=objective,
            optimizers=make_optimizers(setup.model, recipe.train, stage.trainable),
            data=setup.training_data(),
            byte_lengths=setup.corpus.byte_lengths,
            precision=setup.precision,
            board=self._monitors,
            incidents=incidents,
            checkpoints=keeper,
            records=self.records,
            display=self.display,
            stop=stop,
            evaluate=lambda: setup.evaluate(
                "validation", recipe.evaluate.tokens, interrupted=lambda: stop.interrupted
            ),
            carry=Carry(recipe.data.order == "streams"),
            stream_period=setup.stream_period,
        )
        loop.at.seconds = already
        for incident in incidents.known:
            keeper.abandon(incident)
        self._resume(keeper, loop)
        self.display.start(recipe.train.steps, loop.at.step)
        loop.run()
        return loop

    def _resume(self, keeper: Keeper, loop: Loop) -> None:
        """Go on from the newest good checkpoint, or commit the start, so that a rollback always has a target."""
        found = keeper.newest()
        for rejected in keeper.checkpoints.rejected:
            sentence = f"checkpoint generation {rejected.number} was not used: {rejected.reason}"
            self.records.event({"event": "rejected", "generation": rejected.number, "reason": rejected.reason})
            self.display.say(sentence, "yellow")
        if found is None:
            self._initial_weights(loop.model)
            keeper.commit(loop)
            return
        generation, snapshot = found
        keeper.load(loop, generation, snapshot)
        self.records.event({"event": "resume", "step": loop.at.step, "generation": generation.number})
        self.display.say(f"resuming from generation {generation.number} at step {loop.at.step}")

    def _initial_weights(self, model: Any) -> None:
        """``[init] from``: the newest weights of another run."""
        source = self.setup.recipe.init.from_
        if source is None:
            return
        folder = Path(source)
        if not (folder / "checkpoints").is_dir():
            raise StorageError(f"init.from: {folder} has no checkpoints folder; give the directory of a run")
        found = Checkpoints(folder).newest(quarantine=False)
        if found is None:
            raise StorageError(f"init.from: {folder} holds no checkpoint")
        load_weights(model, found[1].model)
        self.display.say(f"weights from {folder} at step {found[1].step}")

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
        return measured

    def _leave_if_interrupted(self, stop: Stop, loop: Loop | None) -> None:
        if stop.signal is None:
            return
        self.display.finish()
        self.records.event({"event": "interrupted", "signal": stop.signal, "step": loop.at.step if loop else 0})
        raise Interrupted(
            stop.signal,
            f"interrupted; everything is saved. Go on with: muse-run --resume {self.directory.path}",
        )

    def _summary(self, loop: Loop | None, measured: dict[int, HeldOut], stop: Stop) -> dict[str, Any]:
        setup, recipe = self.setup, self.setup.recipe
        first = next(iter(measured.values()))
        at = attrs.asdict(loop.at) if loop else {"step": 0, "accepted": 0, "tokens": 0, "seconds": 0.0}
        memory = {}
        if setup.precision.device.type == "cuda":
            memory["peak_memory_bytes"] = torch.cuda.max_memory_allocated(setup.precision.device)
        summary = {
            "name": recipe.name,
            "seed": recipe.seed,
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "steps": at["step"],
            "planned_steps": recipe.train.steps,
            "stopped_by_time": bool(loop and at["step"] < recipe.train.steps),
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
            "held_out_by_length": {str(length): result.bits_per_byte for length, result in measured.items()},
            "rollbacks": len(loop.incidents.known) if loop else 0,
            "device": str(setup.precision.device),
            "precision": setup.precision.dtype,
            "kernels": {key: chosen.backend for key, chosen in setup.kernels.choices.items()},
        } | memory
        self.directory.write("summary.json", json.dumps(summary, indent=2) + "\n")
        return summary
