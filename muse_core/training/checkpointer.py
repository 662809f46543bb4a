"""Commits the state of a run, puts it back, and decides which checkpoint a rollback or a resumption begins from."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import attrs
from torch import Tensor

from muse_core.contracts import Remedy, Verdict
from muse_core.data.batches import TrainingData
from muse_core.errors import Halted, StorageError
from muse_core.fault_injection import fault_point
from muse_core.metrics.console import Display
from muse_core.metrics.recorder import Telemetry
from muse_core.parallel.one import ONE, Ranks
from muse_core.storage.checkpoint import Checkpoints, Generation, Snapshot
from muse_core.training.due import check_due, check_weights, expected_carry
from muse_core.training.shards import load_whole
from muse_core.training.train_state import Incident, Incidents, TrainState


class Checkpointer:
    """Checkpoints of one stage's state. A generation is certified when its state is finite and no monitor doubts it."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        *,
        data: TrainingData,
        incidents: Incidents,
        records: Telemetry,
        display: Display,
        digests: Mapping[str, str],
        recorded: int = 0,
        restart: bool = False,
        check: Callable[[], None] = lambda: None,
        ranks: Ranks = ONE,
        background: bool = False,
    ):
        """``recorded``: last step of this stage in the metrics of earlier attempts, to say what is lost. ``restart``:
        begin again where steps are recorded and no checkpoint is left. ``check`` raises when the run directory is no
        longer held. ``background``: write while training goes on."""
        self.checkpoints = checkpoints
        self.ranks = ranks
        self.state = state
        self.data = data
        self.incidents = incidents
        self.records = records
        self.display = display
        self.digests = dict(digests)
        self.recorded = recorded
        self.restart = restart
        self.check = check
        self.committed: int | None = None
        """Step of the newest checkpoint of this attempt."""
        self.background = background
        self._pending: Background | None = None

    def commit(self) -> None:
        """Save the run as it stands; a step already saved is not saved again. In the background only a copy is taken
        here: the step is saved once ``settle`` returns."""
        if self.committed == self.state.at.step:
            return
        self.settle()
        self.check()
        self.records.sync()
        ranks = self.ranks
        with ranks.at_work("a checkpoint"):
            snapshot = self.state.snapshot(ranks.rank, ranks.size, pinned=self.background)
            vetoes = self.state.monitors.vetoes(self.state.at.step)
            if self.background:
                self._pending = Background(lambda: self._write(snapshot, vetoes, lambda row: None))
            else:
                self._write(snapshot, vetoes, self.records.event)
        self.committed = self.state.at.step

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if one is. Raises what its writing has raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self.ranks.at_work("a checkpoint"):
                row = pending.result()
            if row is not None:
                self.records.event(row)

    def _write(
        self, snapshot: Snapshot, vetoes: list[str], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any] | None:
        """Commit a snapshot; tells and returns the row of one that is not certified."""
        broken = [one for one in self.checkpoints.ranks.gather(snapshot.nonfinite()) if one]
        reasons = [*vetoes, *(f"{one} is not finite" for one in broken[:1])]
        row = {"event": "uncertified", "step": snapshot.step, "reason": "; ".join(reasons)} if reasons else None
        if row is not None:
            tell(row)
        self.checkpoints.commit(snapshot, certified=not reasons, digests=self.digests)
        return row

    def load(self, generation: Generation, snapshot: Snapshot) -> None:
        """Put the run back to a snapshot, bit for bit. Raises StorageError when what it then is has another hash than
        what was saved: a monitor or component whose state does not come back."""
        check_due(self.state, snapshot)
        self.state.load(snapshot)
        self.committed = snapshot.step
        if self.state.snapshot().state_hash() != generation.state_hash:
            raise StorageError(
                f"checkpoint generation {generation.number}: the run does not come back to the state that was saved; "
                "the recipe, a plugin or the device has changed"
            )

    def restore(self, verdict: Verdict) -> None:
        """Roll back to a certified generation at or before the onset of damage, the newest unless the verdict's remedy
        says otherwise, and skip the data between.

        The incident is on disk before anything is restored, so that a kill in between repeats the decision.
        """
        self.settle()
        onset = self.state.at.step if verdict.onset is None else verdict.onset
        found = self._target(onset, self.state.at.step, verdict.remedy)
        if found is None:
            raise Halted(
                f"halted at step {self.state.at.step} by {verdict.monitor}: {verdict.reason}; "
                f"there is no certified checkpoint to go back to"
            )
        generation, snapshot = found
        skipped = self.incidents.quarantine
        first, end = self.data.data_step(onset, skipped), self.data.data_step(self.state.at.step, skipped) + 1
        more = (verdict.remedy.window - 1) * (end - first)
        data = (max(self.data.data_step(snapshot.step, skipped), first - more // 2), end + more - more // 2)
        incident = Incident(
            stage=self.state.stage,
            step=self.state.at.step,
            onset=onset,
            target=snapshot.step,
            data=data,
            generation=generation.number,
            through=self.ranks.gather(max(one.number for one in self.checkpoints.generations()))[0],
            rate=verdict.remedy.rate,
            reset_moments=verdict.remedy.reset_moments,
        )
        self.incidents.add(incident, verdict)
        self.records.event({"event": "incident"} | attrs.asdict(incident) | {"data": list(data)})
        fault_point("rollback", incident)
        self.abandon(incident)
        self.state.optimizers.zero_grad()
        self.load(generation, snapshot)
        if incident.reset_moments:
            self.state.optimizers.forget()
        self.display.say(
            f"restored step {snapshot.step} from generation {generation.number}; "
            f"data steps {data[0]} to {data[1] - 1} are skipped"
            + (f", the learning rate is multiplied by {incident.rate:g}" if incident.rate != 1 else "")
            + (", the optimiser's moments start afresh" if incident.reset_moments else ""),
            "yellow",
        )
        fault_point("restored", self.state)

    def _target(self, onset: int, now: int, remedy: Remedy) -> tuple[Generation, Snapshot] | None:
        """The checkpoint to go back to: as the remedy asks; or else the oldest certified one, which was found good when
        it was made, although the onset was placed before it. ``now`` is the step that found the damage."""
        certified = [one for one in self.checkpoints.generations() if one.certified and not one.abandoned]
        certified = certified[: min(self.ranks.gather(len(certified)))]
        allowed = sum(one.step <= onset - remedy.margin for one in certified)
        for older in range(min(remedy.older, allowed - 1), -1, -1):
            if found := self.checkpoints.certified_before(onset, margin=remedy.margin, skip=older):
                return found
        for older in range(len(certified) - 1, -1, -1):
            if found := self.checkpoints.certified_before(now, skip=older):
                return found
        return None

    def abandon(self, incident: Incident) -> None:
        """Generations that a rollback left behind are never loaded again. Repeating it changes nothing: a resumed run
        does, in case it was killed between the decision and this."""
        self.checkpoints.abandon(after=incident.generation, through=incident.through)

    def resume(self) -> bool:
        """Go on from the newest good checkpoint, or commit the start, so that a rollback always has a target. A
        checkpoint of an earlier stage gives its weights. False when this stage was already done. Raises StorageError
        for a checkpoint that is not of this run's model and stages, and where there is no room for a new one."""
        for incident in self.incidents.known:
            self.abandon(incident)
        found = self.checkpoints.newest()
        for rejected in self.checkpoints.rejected:
            self.records.event({"event": "rejected", "generation": rejected.number, "reason": rejected.reason})
            self.display.say(f"checkpoint generation {rejected.number} was not used: {rejected.reason}", "yellow")
        if found is not None and type(found[1].json.get("stage")) is not int:
            raise StorageError("checkpoint: state.json: stage is not a whole number")
        if found is not None and found[1].json["stage"] > self.state.stage:
            return False
        if found is None or found[1].json["stage"] < self.state.stage:
            if found is not None:
                load_weights(self.state.model, found[1].model)
            else:
                self._begin_again()
            self._check_space()
            self.commit()
            return True
        generation, snapshot = found
        self.load(generation, snapshot)
        if self.incidents.resets(generation.number):
            self.state.optimizers.forget()
        row = {"event": "resume", "step": self.state.at.step, "generation": generation.number}
        lost = self.recorded > self.state.at.step
        self.records.event(row | ({"discarded": [self.state.at.step + 1, self.recorded]} if lost else {}))
        self.display.say(
            f"resuming from generation {generation.number} at step {self.state.at.step}"
            + (f"; steps {self.state.at.step + 1} to {self.recorded} were not saved and are done again" if lost else "")
        )
        return True

    def _begin_again(self) -> None:
        """Where steps are recorded but no checkpoint is left: refused unless asked for, and then on record."""
        if not self.recorded:
            return
        if not self.restart:
            raise StorageError(
                f"{self.checkpoints.directory}: there is no checkpoint, but metrics.jsonl has {self.recorded} steps - "
                "put the checkpoints back, or begin again at step 0 with --restart"
            )
        self.records.event({"event": "restart", "step": 0, "discarded": [1, self.recorded]})
        self.display.say(f"no checkpoint is left: beginning again; steps 1 to {self.recorded} are done again", "yellow")

    def _check_space(self) -> None:
        """Raises StorageError when disk or quota has no room for checkpoints as they will be once the optimisers have
        their moments and streams their carried states."""
        now = self.state.snapshot()
        all_of_it = attrs.evolve(
            now,
            optimizer=self.state.optimizers.expected_tensors() | now.optimizer,
            state=expected_carry(self.state) | now.state,
        )
        # What the ranks write together is counted once.
        self.checkpoints.check_space(
            all_of_it if self.ranks.rank == 0 else attrs.evolve(now, model={}, optimizer={}, state={})
        )


class Background:
    """Something that a thread does, with the fault plan of whoever asked for it."""

    def __init__(self, action: Callable[[], Any]):
        self._done: Future[Any] = Future()
        inherited = contextvars.copy_context()

        def run() -> None:
            try:
                self._done.set_result(inherited.run(action))
            except BaseException as error:
                self._done.set_exception(error)

        threading.Thread(target=run, name="muse-checkpoint").start()

    def result(self) -> Any:
        """What it gave, once it is done. Raises what it raised."""
        return self._done.result()


def load_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights by name. Raises StorageError naming the first tensor that does not fit."""
    check_weights(model, tensors)
    load_whole(model, tensors)
