"""Both stages together, a function of numbers alone: what the monitor decides and what the simulation replays. Imports
no torch."""

from __future__ import annotations

from typing import Any

from muse_rollback.canary import Canary
from muse_rollback.options import RollbackOptions
from muse_rollback.screen import Screen

QUIET = 8
"""Steps without a new suspicion after the canary has answered one."""


class Machine:
    """Losses in, questions to the canary out; answers in, a decision out."""

    def __init__(self, options: RollbackOptions, *, warmup_steps: int = 0, checkpoint_every: int | None = None):
        """warmup_steps: those of the learning rate. Every ``checkpoint_every`` steps the canary is asked too."""
        self.options = options
        self.start = max(options.warmup_steps, warmup_steps)
        self.checkpoint_every = checkpoint_every
        self.screen = Screen(options)
        self.canary = Canary(options)
        self.suspicion: tuple[str, int] | None = None
        self.quiet_until = 0
        self.passed_at = 0
        self.damage: tuple[str, int] | None = None
        """Why the run is damaged, and the first step held responsible."""

    def see(self, step: int, loss: float) -> None:
        """The finite training loss of a step."""
        found = self.screen.look(step, loss)
        if found and self.suspicion is None and step >= max(self.start, self.quiet_until) and self.canary.ready:
            self.suspicion = found

    def asks(self, step: int) -> bool:
        """Whether the canary is to be evaluated after ``step`` steps."""
        waiting = self.canary.above_since is not None
        return self.regular(step) or (self.canary.again(step) if waiting else self.suspicion is not None)

    def regular(self, step: int) -> bool:
        """Whether it is, whatever the losses."""
        return step % self.options.every == 0 or bool(self.checkpoint_every and step % self.checkpoint_every == 0)

    def answer(self, step: int, value: float) -> None:
        """The canary's loss after ``step`` steps, nats per token."""
        what = self.canary.take(step, value, regular=self.regular(step), deciding=step >= self.start)
        if what is not None:
            reason, onset = self.suspicion or ("", self.passed_at)
            self.damage = (f"{what}; {reason}" if reason else what), onset
        elif self.canary.above_since is None:
            if self.suspicion is not None:
                self.quiet_until = step + QUIET
            self.passed_at, self.suspicion = step, None
        elif self.suspicion is None:
            self.suspicion = f"the losses themselves gave no reason to look at step {step}", self.passed_at

    def veto_certification(self, step: int) -> str | None:
        """Why the weights after ``step`` steps cannot be vouched for, or None."""
        if step == 0:
            return None
        if self.damage is not None:
            return self.damage[0]
        if self.canary.above_since is not None:
            return "the canary's loss is above its bound"
        return None if self.passed_at == step else f"the canary was last evaluated after step {self.passed_at}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "screen": self.screen.state_dict(),
            "canary": self.canary.state_dict(),
            "suspicion": None if self.suspicion is None else list(self.suspicion),
            "quiet_until": self.quiet_until,
            "passed_at": self.passed_at,
            "damage": None if self.damage is None else list(self.damage),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.screen.load_state_dict(state["screen"])
        self.canary.load_state_dict(state["canary"])
        self.suspicion = None if state["suspicion"] is None else tuple(state["suspicion"])
        self.quiet_until = state["quiet_until"]
        self.passed_at = state["passed_at"]
        self.damage = None if state["damage"] is None else tuple(state["damage"])
