"""The monitors of a run: asked at defined points, the strongest verdict wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.component import Use
from muse_core.contracts import Action, Remedy, Verdict
from muse_core.errors import MuseError, PluginError
from muse_core.evaluation.held_out import undisturbed
from muse_core.model.precision import Precision
from muse_core.plugins.raised import raised

STREAK = 3
"""Consecutive non-finite steps after which skipping is not enough."""


@attrs.define
class FiniteJudge:
    """The core's own judge, always active: a non-finite loss or gradient skips the step; three in a row, or a weight or
    moment that is not finite, roll back."""

    streak: int = 0

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        if broken := floats["state_nonfinite"]:
            what = f"{broken:.0f} tensors of weights or moments not finite"
            return Verdict(Action.ROLLBACK, what, "finite", max(step - 1, 0))
        if math.isfinite(floats["total"]) and not floats["gradient_nonfinite"]:
            self.streak = 0
            return Verdict()
        what = (
            f"loss {floats['loss']}"
            if not math.isfinite(floats["total"])
            else f"{floats['gradient_nonfinite']:.0f} gradient tensors not finite"
        )
        self.streak += 1
        if self.streak < STREAK:
            return Verdict(Action.SKIP, what, "finite")
        onset = step - self.streak + 1
        return Verdict(Action.ROLLBACK, f"{what}, {self.streak} steps in a row", "finite", onset)


def strongest_remedy(remedies: Iterable[Remedy]) -> Remedy:
    """Of each part what changes most."""
    asked = list(remedies)
    return Remedy(
        margin=max(one.margin for one in asked),
        older=max(one.older for one in asked),
        window=max(one.window for one in asked),
        rate=min(one.rate for one in asked),
        reset_moments=any(one.reset_moments for one in asked),
    )


class MonitorGroup:
    """Monitors in the recipe's order behind one set of calls."""

    def __init__(self, monitors: Sequence[tuple[Use, Any]]):
        self.monitors = tuple(monitors)
        self.finite = FiniteJudge()

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every monitor's device numbers under ``<monitor>/<name>``."""
        measured: dict[str, Tensor] = {}
        for use, monitor in self.monitors:
            found = self._call(use, "measure", monitor.measure, moment, values)
            measured.update({f"{use.name}/{key}": value for key, value in found.items()})
        return measured

    def judge(
        self,
        step: int,
        floats: Mapping[str, float],
        warn: Callable[[str], None],
        *,
        only: Collection[str] | None = None,
    ) -> Verdict:
        """The strongest verdict, of all or of the monitors named by ``only``. Monitors that agree are all named, with
        their reasons and the earliest onset; one that goes on but gives a reason is heard through ``warn``."""
        verdicts = [self.finite.judge(step, floats) if only is None else Verdict()]
        for use, monitor in self.monitors:
            if only is not None and use.name not in only:
                continue
            verdict = self._call(use, "judge", monitor.judge, step, floats)._replace(monitor=use.name)
            if verdict.action is Action.CONTINUE and verdict.reason:
                warn(f"{use.name}: {verdict.reason}")
            verdicts.append(verdict)
        strongest = max(verdict.action for verdict in verdicts)
        if strongest is Action.CONTINUE:
            return Verdict()
        agreed = [verdict for verdict in verdicts if verdict.action is strongest]
        return Verdict(
            strongest,
            "; ".join(verdict.reason for verdict in agreed),
            ", ".join(verdict.monitor for verdict in agreed),
            min((verdict.onset for verdict in agreed if verdict.onset is not None), default=None),
            strongest_remedy(verdict.remedy for verdict in agreed),
        )

    def vetoes(self, step: int) -> list[str]:
        """Why the checkpoint after ``step`` steps may not be certified."""
        asked = [(use, monitor.veto_certification) for use, monitor in self.monitors if hasattr(monitor, "veto_certification")]
        found = [(use.name, self._call(use, "veto_certification", veto_certification, step)) for use, veto_certification in asked]
        return [f"{name}: {reason}" for name, reason in found if reason]

    def probe(
        self,
        step: int,
        floats: Mapping[str, float],
        model: Any,
        precision: Precision,
        warn: Callable[[str], None],
    ) -> dict[str, float]:
        """Results of the probes that are due, under ``<monitor>/<name>``. A probe that raises is reported through
        ``warn`` and changes nothing: training, random state and mode stay as they were."""
        results: dict[str, float] = {}
        for use, monitor in self.monitors:
            if not self._call(use, "wants_probe", monitor.wants_probe, step, floats):
                continue
            try:
                with undisturbed(model), precision():
                    found = monitor.probe(model)
            except (torch.OutOfMemoryError, MuseError):
                raise
            except Exception as error:
                warn(f"the probe of {use.name} ({use.distribution}) failed: {raised(error, use.implementation)}")
                continue
            results.update({f"{use.name}/{key}": float(value) for key, value in found.items()})
        return results

    def state_dict(self) -> dict[str, Any]:
        return {"finite": self.finite.streak} | {use.name: m.state_dict() for use, m in self.monitors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.finite.streak = state["finite"]
        for use, monitor in self.monitors:
            if use.name in state:
                monitor.load_state_dict(state[use.name])

    def _call(self, use: Use, what: str, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except MuseError:
            raise
        except Exception as error:
            raise PluginError(
                f"monitor {use.name!r} of {use.distribution} {use.version} raised in {what}: "
                + raised(error, use.implementation)
            ) from error
