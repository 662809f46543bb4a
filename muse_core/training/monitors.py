"""The monitors of a run: asked at defined points, the strongest verdict wins. What those share that look at the model
between steps, at a cost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from muse_core.component import Use
from muse_core.contracts import Action, Monitor, Remedy, Verdict
from muse_core.errors import MuseError, PluginError
from muse_core.evaluation.held_out import undisturbed
from muse_core.model.precision import Precision
from muse_core.out_of_memory import ran_out
from muse_core.parallel.one import ONE, Ranks
from muse_core.plugins.raised import raised
from muse_core.storage.canonical_json import encode

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


def _wrong_field(verdict: Verdict) -> str | None:
    """The first field of a verdict that is of another type than its contract says, with what is due."""
    remedy = verdict.remedy
    due: list[tuple[str, Any, type | tuple[type, ...], str]] = [
        ("action", verdict.action, Action, "an Action, such as Action.HALT,"),
        ("reason", verdict.reason, str, "a text"),
        ("onset", verdict.onset, (int, type(None)), "a step or None"),
        ("remedy", remedy, Remedy, "a Remedy"),
    ]
    if isinstance(remedy, Remedy):
        counts = {"margin": remedy.margin, "older": remedy.older, "window": remedy.window}
        due += [(f"remedy.{name}", count, int, "a whole number") for name, count in counts.items()]
        due += [("remedy.rate", remedy.rate, (int, float), "a number")]
    for name, value, kind, words in due:
        if not isinstance(value, kind):
            return f"{name} is {value!r:.60} where {words} is due"
    return None


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
            if not isinstance(found, Mapping):
                raise self._departed(use, "measure", found, "a dict of scalar tensors")
            for key, value in found.items():
                if not isinstance(value, Tensor) or value.shape != () or value.is_complex():
                    raise self._departed(use, f"measure as {key!r}", value, "a real scalar tensor")
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
            verdict = self._call(use, "judge", monitor.judge, step, floats)
            if not isinstance(verdict, Verdict):
                raise self._departed(use, "judge", verdict, "a Verdict")
            if wrong := _wrong_field(verdict):
                raise PluginError(f"{use.title} returned from judge a Verdict whose {wrong}")
            verdict = verdict._replace(monitor=use.name)
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
        reasons: list[str] = []
        for use, monitor in self.monitors:
            if hasattr(monitor, "veto_certification"):
                reason = self._call(use, "veto_certification", monitor.veto_certification, step)
                reasons += [f"{use.name}: {reason}"] if reason else []
        return reasons

    def probe(
        self,
        step: int,
        floats: Mapping[str, float],
        model: Any,
        precision: Precision,
        warn: Callable[[str], None],
        ranks: Ranks = ONE,
    ) -> dict[str, float]:
        """Results of the probes that are due, under ``<monitor>/<name>``; of several ranks those of rank 0, for
        judges, and what rank 0's monitors have made of them, so that all judge alike. A probe that raises, exits or
        returns no numbers is reported through ``warn`` and changes nothing: training, random state and mode stay as
        they were."""
        results: dict[str, float] = {}
        asked: list[tuple[Use, Any]] = []
        for use, monitor in self.monitors:
            if not self._call(use, "wants_probe", monitor.wants_probe, step, floats):
                continue
            asked.append((use, monitor))
            try:
                with ranks.at_work(f"the probe of {use.name}"), undisturbed(model), precision():
                    found = {f"{use.name}/{key}": float(value) for key, value in monitor.probe(model).items()}
            except MuseError:
                raise
            except (Exception, SystemExit) as error:
                if ran_out(error):
                    raise
                warn(f"the probe of {use.name} ({use.distribution}) failed: {raised(error, use.implementation)}")
                continue
            results.update(found)
        if asked and ranks.size > 1:
            states = [self._call(use, "state_dict", monitor.state_dict) for use, monitor in asked]
            results, states = ranks.exchange((results, states))[0]
            if ranks.rank:
                for (use, monitor), state in zip(asked, states, strict=True):
                    self._call(use, "load_state_dict", monitor.load_state_dict, state)
        return results

    def state_dict(self) -> dict[str, Any]:
        """The monitors' by name. Raises PluginError naming one whose state JSON would change."""
        states: dict[str, Any] = {"finite": self.finite.streak}
        for use, monitor in self.monitors:
            states[use.name] = self._call(use, "state_dict", monitor.state_dict)
            try:
                encode(states[use.name])
            except ValueError as error:
                raise PluginError(f"{use.title}: its state_dict cannot be kept in a checkpoint: {error}") from error
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.finite.streak = state["finite"]
        for use, monitor in self.monitors:
            if use.name in state:
                self._call(use, "load_state_dict", monitor.load_state_dict, state[use.name])

    def _departed(self, use: Use, what: str, found: Any, due: str) -> PluginError:
        said = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{type(found).__name__}"
        return PluginError(f"{use.title} returned {said} from {what} where {due} is due")

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


PART_OF_STEP = 0.4
"""What reading tokens takes of what training on them takes, before it was measured: a third for forward without
backward, and more because what is read beside training comes in smaller batches."""

MARGIN = 1.5
"""What the next one may take of what the longest did. Without it 1.01 % were spent where 1 % was allowed: of six probes
the last took a third longer than any before, on a machine that others used too."""


class ProbeBudget:
    """Counts the wall clock of a run and what has been spent of it; asks before something is done that costs.

    ``step`` is called once a training step, ``spending`` around what costs. ``share_with_next`` is the share of the
    run's time that would have been spent if one more were done now: while it is asked and obeyed, ``share``, measured
    over whole intervals from the end of one to the end of the next, stays below the budget. An attempt that resumes a
    run starts with nothing spent.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        """Seconds."""
        self.cost = 0.0
        """Seconds of the last one."""
        self.largest: float | None = None
        """Seconds of the longest one, the first left out once there was another: it compiles kernels and fills caches.
        None before the first."""
        self._count = 0
        self._started: float | None = None
        self._steps = 0

    def step(self) -> None:
        """A training step has come this far."""
        if self._started is None:
            self._started = time.perf_counter()
        self._steps += 1

    @property
    def share(self) -> float:
        """Of the wall clock since the first step, what was spent."""
        elapsed = self._elapsed()
        return self.spent / elapsed if elapsed else 0.0

    def share_with_next(self, passes: float) -> float:
        """As ``share`` with one more. ``passes``: how many training batches the first of them reads; later ones are
        planned at ``MARGIN`` times ``largest``."""
        elapsed = self._elapsed()
        if not elapsed:
            return math.inf
        if self.largest is not None:
            cost = MARGIN * self.largest
        else:
            cost = elapsed / self._steps * passes * PART_OF_STEP
        return (self.spent + cost) / elapsed

    @contextlib.contextmanager
    def spending(self, *, once: bool = False) -> Iterator[None]:
        """What happens inside is spent, also when it raises. ``once``: it will not come again, so that nothing is
        planned by it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            cost = time.perf_counter() - started
            self.spent += cost
            if not once:
                self._count += 1
                self.cost, self.largest = cost, max(cost, self.largest) if self._count > 2 else cost

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started


class BudgetedProbe(Monitor):
    """A monitor that probes every so many steps while that stays within a share of the run's wall clock.

    A subclass gives ``probe``, spends within ``self.probe_budget.spending()``, and writes a sentence into ``failure``
    when what it found is bad; the next ``judge`` reports it once, as "warn" or "halt" asks. Number of a step:
    ``share_max``, the share if one more ran now; it is reduced over ranks, so that all decide alike.
    """

    def __init__(
        self, name: str, *, every: int, budget: float, on_failure: Literal["warn", "halt"], passes: float
    ):
        """``passes``: how many training batches the first probe reads."""
        self.name = name
        self.every = every
        self.budget = budget
        self.on_failure = on_failure
        self.passes = passes
        self.probe_budget = ProbeBudget()
        self.step = 0
        self.failure = ""

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        if moment != "step":
            return {}
        self.probe_budget.step()
        return {"share_max": torch.tensor(self.probe_budget.share_with_next(self.passes), dtype=torch.float64)}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        self.step = step
        if not self.failure:
            return Verdict()
        failure, self.failure = self.failure, ""
        return Verdict(Action.HALT if self.on_failure == "halt" else Action.CONTINUE, failure, self.name, step)

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return step % self.every == 0 and floats[f"{self.name}/share_max"] <= self.budget

    def costs(self) -> dict[str, float]:
        """``seconds`` of the last probe and ``share`` of the run's time that probes have taken."""
        return {"seconds": self.probe_budget.cost, "share": self.probe_budget.share}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what the wall clock decides must not enter the state of a run."""
        return {}

