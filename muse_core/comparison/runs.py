"""The runs of a comparison that are decided so far. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from muse_core.comparison.budget import measuring_cells, steps_in_time
from muse_core.comparison.cells import FAILED, Cell, chosen_values, reported_cells, tuning_cells
from muse_core.comparison.plan import Read, Value
from muse_core.comparison.trained import unlike_training


@attrs.frozen(kw_only=True)
class Runs:
    """The runs of a plan; those whose settings an unfinished run decides are not among them yet."""

    measuring: Sequence[Cell]
    """Short runs that measure the speed, where the plan has a budget of seconds."""
    steps: Mapping[str, int] | None
    """Variant → steps of its runs, for those whose speed is measured; None without a budget."""
    tuning: Sequence[Cell]
    values: Mapping[str, Value | None]
    """Variant → value of the tuned key, for those whose sweep is over; None without a sweep."""
    reported: Sequence[Cell]
    trained_otherwise: Sequence[str] = ()
    """A sentence for each variant that is trained on more, less or other rows than the baseline."""

    @property
    def all(self) -> list[Cell]:
        """In the order in which they are run."""
        return [*self.measuring, *self.tuning, *self.reported]


@attrs.define
class Comparison:
    """A plan and the folder of its runs."""

    read: Read
    folder: Path
    sweep_only: bool = attrs.field(default=False, kw_only=True)
    """Leave the reported runs that are not done out, so that the sweep can be looked at before they are run."""
    _checked: set[Path] = attrs.field(factory=set, init=False)

    def runs(self) -> Runs:
        """Reads how far the folder is. Raises StorageError where a run in it is one of another recipe, which must not
        be counted."""
        steps = steps_in_time(self.read, self.folder)
        tuning = tuning_cells(self.read, self.folder, steps)
        values = chosen_values(self.read.plan, tuning)
        reported = reported_cells(self.read, self.folder, values, steps)
        found = Runs(
            measuring=measuring_cells(self.read, self.folder), steps=steps, tuning=tuning, values=values,
            reported=[cell for cell in reported if cell.summary() is not None] if self.sweep_only else reported,
            trained_otherwise=self.trained_otherwise,
        )
        for cell in found.all:
            if cell.path not in self._checked:
                cell.started()
                self._checked.add(cell.path)
        return found

    @functools.cached_property
    def trained_otherwise(self) -> list[str]:
        """Sentences on variants whose recipes train otherwise than the baseline's."""
        return unlike_training(self.read)

    def counted(self) -> tuple[int, int]:
        """Runs that are settled, and all of the plan, those whose settings are not decided yet among them."""
        plan, found = self.read.plan, self.runs()
        swept = 0 if plan.tune is None else plan.tune.runs
        reported = len(found.reported) if self.sweep_only else len(plan.variants) * len(plan.seeds)
        every = len(found.measuring) + len(plan.variants) * swept + reported
        return sum(cell.settled() for cell in found.all), every

    def forget_failures(self) -> None:
        """Runs that failed are left to do again."""
        for cell in self.runs().all:
            (cell.path / FAILED).unlink(missing_ok=True)
