"""Between the loop and the checkpoints: takes snapshots of a run, and puts a run back to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.contracts import Remedy, Verdict
from muse_core.errors import Halted, MuseError, StorageError
from muse_core.fault_injection import fault_point
from muse_core.storage.checkpoint import Checkpoints, Generation, Snapshot
from muse_core.training.due import check_due, check_weights
from muse_core.training.incidents import Incident
from muse_core.training.loop import Loop, Position, evaluates


class Checkpointer:
    """Commits and restores a loop. A generation is certified when its state is finite and no monitor doubts it."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        digests: Mapping[str, str],
        stage: int = 0,
        recorded: int = 0,
        *,
        restart: bool = False,
        check: Callable[[], None] = lambda: None,
        evaluated: Callable[[int], bool] = lambda step: True,
    ):
        """``recorded``: last step of this stage in the metrics of earlier attempts, to say what is lost. ``restart``:
        begin again where steps are recorded and no checkpoint is left. ``check`` raises when the run directory is no
        longer held. ``evaluated(step)``: whether the metrics hold the evaluation of that step."""
        self.checkpoints = checkpoints
        self.digests = dict(digests)
        self.stage = stage
        self.recorded = recorded
        self.restart = restart
        self.check = check
        self.evaluated = evaluated
        self.committed: int | None = None
        """Step of the newest checkpoint of this attempt."""

    def commit(self, loop: Loop) -> None:
        """Save the run as it stands after ``loop.at.step`` steps; a step already saved is not saved again."""
        if self.committed == loop.at.step:
            return
        self.check()
        loop.records.sync()
        snapshot = self.snapshot(loop)
        vetoes = loop.monitors.vetoes(loop.at.step)
        if broken := snapshot.nonfinite():
            vetoes.append(f"{broken} is not finite")
        if vetoes:
            loop.records.event({"event": "uncertified", "step": loop.at.step, "reason": "; ".join(vetoes)})
        self.checkpoints.commit(snapshot, certified=not vetoes, digests=self.digests)
        self.committed = loop.at.step

    def snapshot(self, loop: Loop) -> Snapshot:
        """Everything that the next step depends on; wall clock is not, so that equal runs have equal hashes."""
        random = {"random/cpu": torch.get_rng_state()}
        if loop.precision.device.type == "cuda":
            random["random/cuda"] = torch.cuda.get_rng_state(loop.precision.device)
        own = {f"objective/{name}": value for name, value in objective_tensors(loop.objective).items()}
        return Snapshot(
            step=loop.at.step,
            model=kept_weights(loop.model),
            optimizer={name: _kept(value) for name, value in loop.optimizers.state_tensors().items()},
            state={name: _kept(value) for name, value in (random | loop.stream_state.tensors() | own).items()},
            json={
                "stage": self.stage,
                "position": {"step": loop.at.step, "accepted": loop.at.accepted, "tokens": loop.at.tokens},
                "monitors": loop.monitors.state_dict(),
                "objective": loop.objective.state_dict(),
            },
        )

    def load(self, loop: Loop, generation: Generation, snapshot: Snapshot) -> None:
        """Put the run back to a snapshot, bit for bit. Raises StorageError when what it then is has another hash than
        what was saved: a monitor or component whose state does not come back."""
        check_due(loop, snapshot)
        load_weights(loop.model, snapshot.model)
        loop.optimizers.load_state_tensors(snapshot.optimizer)
        loop.stream_state.load(
            {name: value for name, value in snapshot.state.items() if name.startswith("carry/")}, loop.precision.device
        )
        loop.at = Position(**snapshot.json["position"], seconds=loop.at.seconds)
        for part, holder in (("monitors", loop.monitors), ("objective", loop.objective)):
            try:
                holder.load_state_dict(snapshot.json[part])
            except MuseError:
                raise
            except Exception as error:  # a plugin's own code, on a state that may be another version's
                why = f"{type(error).__name__}: {error}"
                raise StorageError(f"checkpoint: state.json: {part} cannot be taken up ({why})") from error
        if hasattr(loop.objective, "load_tensors"):
            own = {
                name.removeprefix("objective/"): value
                for name, value in snapshot.state.items() if name.startswith("objective/")
            }
            loop.objective.load_tensors(own, loop.precision.device)
        torch.set_rng_state(snapshot.state["random/cpu"])
        if "random/cuda" in snapshot.state and loop.precision.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot.state["random/cuda"], loop.precision.device)
        self.committed = snapshot.step
        if self.snapshot(loop).state_hash() != generation.state_hash:
            raise StorageError(
                f"checkpoint generation {generation.number}: the run does not come back to the state that was saved; "
                "the recipe, a plugin or the device has changed"
            )

    def restore(self, loop: Loop, verdict: Verdict) -> None:
        """Roll back to a certified generation at or before the onset of damage, the newest unless the verdict's remedy
        says otherwise, and skip the data between.

        The incident is on disk before anything is restored, so that a kill in between repeats the decision.
        """
        onset = loop.at.step if verdict.onset is None else verdict.onset
        found = self._target(onset, loop.at.step, verdict.remedy)
        if found is None:
            raise Halted(
                f"halted at step {loop.at.step} by {verdict.monitor}: {verdict.reason}; "
                f"there is no certified checkpoint to go back to"
            )
        generation, snapshot = found
        skipped = loop.incidents.quarantine
        first, end = loop.data.data_step(onset, skipped), loop.data.data_step(loop.at.step, skipped) + 1
        more = (verdict.remedy.window - 1) * (end - first)
        data = (max(loop.data.data_step(snapshot.step, skipped), first - more // 2), end + more - more // 2)
        incident = Incident(
            stage=self.stage,
            step=loop.at.step,
            onset=onset,
            target=snapshot.step,
            data=data,
            generation=generation.number,
            through=max(one.number for one in self.checkpoints.generations()),
            rate=verdict.remedy.rate,
            reset_moments=verdict.remedy.reset_moments,
        )
        loop.incidents.add(incident, verdict)
        loop.records.event({"event": "incident"} | attrs.asdict(incident) | {"data": list(data)})
        fault_point("rollback", incident)
        self.abandon(incident)
        loop.optimizers.zero_grad()
        self.load(loop, generation, snapshot)
        if incident.reset_moments:
            loop.optimizers.forget()
        loop.display.say(
            f"restored step {snapshot.step} from generation {generation.number}; "
            f"data steps {data[0]} to {data[1] - 1} are skipped"
            + (f", the learning rate is multiplied by {incident.rate:g}" if incident.rate != 1 else "")
            + (", the optimiser's moments start afresh" if incident.reset_moments else ""),
            "yellow",
        )
        fault_point("restored", loop)

    def _target(self, onset: int, now: int, remedy: Remedy) -> tuple[Generation, Snapshot] | None:
        """The checkpoint to go back to: as the remedy asks; or else the oldest certified one, which was found good when
        it was made, although the onset was placed before it. ``now`` is the step that found the damage."""
        certified = [one for one in self.checkpoints.generations() if one.certified and not one.abandoned]
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

    def resume(self, loop: Loop) -> bool:
        """Go on from the newest good checkpoint, or commit the start, so that a rollback always has a target. A
        checkpoint of an earlier stage gives its weights. False when this stage was already done."""
        for incident in loop.incidents.known:
            self.abandon(incident)
        found = self.checkpoints.newest()
        for rejected in self.checkpoints.rejected:
            loop.records.event({"event": "rejected", "generation": rejected.number, "reason": rejected.reason})
            loop.display.say(f"checkpoint generation {rejected.number} was not used: {rejected.reason}", "yellow")
        if found is not None and type(found[1].json.get("stage")) is not int:
            raise StorageError("checkpoint: state.json: stage is not a whole number")
        if found is not None and found[1].json["stage"] > self.stage:
            return False
        if found is None or found[1].json["stage"] < self.stage:
            if found is not None:
                load_weights(loop.model, found[1].model)
            else:
                self._begin_again(loop)
            self._check_space(loop)
            self.commit(loop)
            return True
        generation, snapshot = found
        self.load(loop, generation, snapshot)
        if loop.incidents.resets(generation.number):
            loop.optimizers.forget()
        row = {"event": "resume", "step": loop.at.step, "generation": generation.number}
        lost = self.recorded > loop.at.step
        loop.records.event(row | ({"discarded": [loop.at.step + 1, self.recorded]} if lost else {}))
        loop.display.say(
            f"resuming from generation {generation.number} at step {loop.at.step}"
            + (f"; steps {loop.at.step + 1} to {self.recorded} were not saved and are done again" if lost else "")
        )
        loop.evaluation_due = evaluates(loop.recipe, loop.at.step) and not self.evaluated(loop.at.step)
        return True

    def _begin_again(self, loop: Loop) -> None:
        """Where steps are recorded but no checkpoint is left: refused unless asked for, and then on record."""
        if not self.recorded:
            return
        if not self.restart:
            raise StorageError(
                f"{self.checkpoints.directory}: there is no checkpoint, but metrics.jsonl has {self.recorded} steps - "
                "put the checkpoints back, or begin again at step 0 with --restart"
            )
        loop.records.event({"event": "restart", "step": 0, "discarded": [1, self.recorded]})
        loop.display.say(f"no checkpoint is left: beginning again; steps 1 to {self.recorded} are done again", "yellow")

    def _check_space(self, loop: Loop) -> None:
        """Raises StorageError when disk or quota has no room for checkpoints as they will be once the optimisers have
        their moments."""
        now = self.snapshot(loop)
        self.checkpoints.check_space(attrs.evolve(now, optimizer=loop.optimizers.expected_tensors() | now.optimizer))


def objective_tensors(objective: Any) -> dict[str, Tensor]:
    """What an objective keeps in tensors, see ``optional_contracts.KeepsTensors``; most keep nothing."""
    return objective.tensors() if hasattr(objective, "tensors") else {}


def kept_weights(model: Any) -> dict[str, Tensor]:
    """Copies of parameters and buffers by name, on the CPU: what ``load_weights`` takes."""
    return {name: _kept(value) for name, value in model.state_dict().items()}


def load_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights by name. Raises StorageError naming the first tensor that does not fit."""
    check_weights(model, tensors)
    model.load_state_dict(dict(tensors))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
