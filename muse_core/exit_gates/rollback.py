"""A forced spike is rolled back to a state that is equal bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from muse_core import fault_injection
from muse_core.contracts import Batch, Result
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, failed, judged
from muse_core.storage.checkpoint.generation import describe
from muse_core.training.monitors import STREAK
from muse_core.training.train_state import TrainState

EVERY = 3
"""Steps between checkpoints."""
ONSET = 5
"""First step, from 0, whose loss is made infinite; the checkpoint before it is two steps older."""
STEPS = 9


class Spike:
    """Infinite losses in ``STREAK`` steps from ``ONSET`` on. By a factor on the device, since a recorded step
    (``train.cuda_graph``) sees what tensors hold when it is launched, and nothing that Python does within it."""

    def __init__(self) -> None:
        self.begun = 0
        """Steps, of which those that are repeated count again."""
        self.factor: Tensor | None = None

    def batch(self, batch: Batch) -> Batch:
        """A step begins."""
        if self.factor is not None:
            self.factor.fill_(math.inf if ONSET <= self.begun < ONSET + STREAK else 1.0)
        self.begun += 1
        return batch

    def loss(self, result: Result) -> Result:
        if self.factor is None:
            self.factor = torch.ones_like(result.total)
        return result._replace(total=result.total * self.factor)


def forced_spike(bench: Bench) -> Finding:
    """Makes the losses of three steps infinite by fault injection and compares what the run came back to, tensor by
    tensor through one hash, with what the checkpoint's manifest says; the steps that are repeated must repeat."""
    recipe = bench.checked.recipe
    checked = bench.variant({
        "train": {"steps": STEPS, "log_every": 1, "max_seconds": 1e9},
        "checkpoint": {"every": EVERY, "keep": STEPS},
        "evaluate": {"final_tokens": recipe.train.sequence_length * recipe.train.batch_size},
        "stages": [{"use": "train"}],
    })
    seen: list[tuple[int, str]] = []
    spike = Spike()

    def restored(state: TrainState) -> TrainState:
        seen.append((state.at.step, state.snapshot().state_hash()))
        return state

    with fault_injection.installed({"batch": spike.batch, "loss": spike.loss, "restored": restored}):
        run = bench.train(checked, "rollback")
    incidents = run.events("incident")
    if run.halted or not incidents or not seen:
        acted = "; ".join(f"step {row['step']}: {row['event']}" for row in run.events("skip", "rollback", "halt"))
        return failed("the spike was not rolled back", run.halted or acted or "nothing intervened")
    incident, (step, state) = incidents[0], seen[0]
    promised = describe(run.folder / "checkpoints", incident["generation"]).state_hash
    losses: dict[int, list[float]] = {}
    for row in run.rows("train"):
        losses.setdefault(row["step"], []).append(row["loss"])
    # From the onset that the monitors gave, which may lie before the spike, the run reads other text.
    repeated = {number: both[:2] for number, both in losses.items() if incident["target"] < number <= incident["onset"]}
    same = all(len(both) == 2 and both[0] == both[1] for both in repeated.values())
    figure = (
        f"infinite loss at steps {ONSET} to {ONSET + STREAK - 1}: back to step {step}, state {state[:12]}…, manifest "
        f"{promised[:12]}…; {len(repeated)} repeated losses {'equal' if same else 'differ'}"
    )
    # On a GPU atomic additions may sum in another order, so that only the state must be equal there.
    compared = bool(repeated) or incident["target"] == incident["onset"] <= ONSET
    good = state == promised and (same or run.setup.precision.device.type != "cpu") and compared
    return judged(
        good, figure, "the run did not come back to what it was", target=incident["target"], state_hash=state,
        manifest_hash=promised, repeated_losses_equal=same,
    )
