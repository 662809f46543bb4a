"""A forced spike is rolled back to a state that is equal bit for bit."""

from __future__ import annotations

import math
from typing import Any

from muse_core import fault_injection
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
    pieces = -(-recipe.train.batch_size // (recipe.train.micro_batch or recipe.train.batch_size))
    seen: dict[str, Any] = {"calls": 0, "restored": []}

    def spike(result: Any) -> Any:
        step, seen["calls"] = seen["calls"] // pieces, seen["calls"] + 1
        return result._replace(total=result.total * math.inf) if ONSET <= step < ONSET + STREAK else result

    def restored(state: TrainState) -> TrainState:
        seen["restored"].append((state.at.step, state.snapshot().state_hash()))
        return state

    with fault_injection.installed({"loss": spike, "restored": restored}):
        run = bench.train(checked, "rollback")
    incidents = run.events("incident")
    if run.halted or not incidents or not seen["restored"]:
        acted = "; ".join(f"step {row['step']}: {row['event']}" for row in run.events("skip", "rollback", "halt"))
        return failed("the spike was not rolled back", run.halted or acted or "nothing intervened")
    incident, (step, state) = incidents[0], seen["restored"][0]
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
