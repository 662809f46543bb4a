"""Puts promises to the test and prints what came of it: ``python -m muse_core.selftest.run``.

A process of its own, whose children the tests kill. Exit codes: 0 when every promise held, 4 when one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import attrs
import pytest
from rich.console import Console
from rich.table import Table

from muse_core.selftest.promises import PROMISES
from muse_core.selftest.promises.trial import TRIAL, Trial

HELD, BROKEN, SKIPPED = "held", "BROKEN", "not tested"


@attrs.define
class Outcome:
    """What the tests of one promise found."""

    passed: int = 0
    failed: list[str] = attrs.field(factory=list)
    skipped: list[str] = attrs.field(factory=list)
    figures: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    @property
    def result(self) -> str:
        if self.failed:
            return BROKEN
        return HELD if self.passed else SKIPPED


class Examiner:
    """A pytest plugin that keeps the tests of the chosen promises and adds up their results."""

    def __init__(self, chosen: tuple[str, ...], trial: Trial, say):
        self.outcomes = {name: Outcome() for name in chosen}
        self.trial = trial
        self.say = say
        self.promise_of: dict[str, str] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[TRIAL] = self.trial

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("promise")
            if mark is not None and mark.args[0] in self.outcomes:
                self.promise_of[item.nodeid] = mark.args[0]
        items[:] = sorted((item for item in items if item.nodeid in self.promise_of),
                          key=lambda item: list(self.outcomes).index(self.promise_of[item.nodeid]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say(f"{self.promise_of[nodeid]}  {nodeid.rpartition('::')[2]}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self.outcomes[self.promise_of[report.nodeid]]
        outcome.seconds += report.duration
        if report.failed:
            outcome.failed.append(f"{report.nodeid.rpartition('::')[2]}\n{report.longreprtext}")
        elif report.skipped:
            outcome.skipped.append(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))
        elif report.when == "call":
            outcome.passed += 1
            for name, value in report.user_properties:
                if name == "figure" and value not in outcome.figures:
                    outcome.figures.append(str(value))


def examine(chosen: tuple[str, ...], trial: Trial, say) -> Examiner:
    """Run the tests of the chosen promises under pytest, away from any project's settings."""
    examiner = Examiner(chosen, trial, say)
    folder = Path(__file__).parent / "promises"
    with tempfile.TemporaryDirectory(prefix="muse-selftest-") as scratch:
        settings = Path(scratch) / "pytest.ini"
        settings.write_text("[pytest]\n", encoding="utf-8")
        arguments = [str(folder), "-c", str(settings), "--rootdir", str(folder), "-p", "no:cacheprovider", "-q",
                     "--import-mode=importlib", "--basetemp", f"{scratch}/runs"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pytest.main(arguments, plugins=[examiner])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise SystemExit(f"the tests could not run:\n{said.getvalue().strip()}")
    return examiner


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="muse selftest", description=__doc__)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", default=",".join(PROMISES))
    parser.add_argument("--seed", type=int)
    given = parser.parse_args(arguments)
    chosen = tuple(name for name in PROMISES if name in given.only.split(","))
    if given.seed is not None:
        seed = given.seed
    else:
        seed = random.SystemRandom().randrange(2**31) if given.long else Trial().seed
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    console = Console(file=stream, highlight=False)
    form = "long" if given.long else "short"
    console.print(f"seed {seed}, {form} form", style="bold")
    began = time.perf_counter()
    status = console.status("starting") if console.is_terminal else None
    with status or contextlib.nullcontext():
        examiner = examine(chosen, Trial(long=given.long, seed=seed), status.update if status else lambda line: None)
    table = Table("promise", "", "result", "figure", "tests", "s", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, outcome in examiner.outcomes.items():
        figure = "; ".join(outcome.figures) or "; ".join(dict.fromkeys(outcome.skipped))
        style = {HELD: "green", BROKEN: "red"}.get(outcome.result, "yellow")
        result = f"[{style}]{outcome.result}[/{style}]"
        table.add_row(name, PROMISES[name], result, figure, str(outcome.passed), f"{outcome.seconds:.0f}")
    console.print(table)
    long = " --long" if given.long else ""
    for name, outcome in examiner.outcomes.items():
        for failure in outcome.failed:
            console.print(f"\n{name} broken in {failure}\n", markup=False)
            console.print(f"again: muse selftest{long} --only {name} --seed {seed}", markup=False)
    held = sum(outcome.result == HELD for outcome in examiner.outcomes.values())
    console.print(f"{held} of {len(chosen)} promises held in {time.perf_counter() - began:.0f} s; "
                  f"the same again: muse selftest{long} --only {','.join(chosen)} --seed {seed}", markup=False)
    stream.flush()
    return 0 if not any(outcome.failed for outcome in examiner.outcomes.values()) else 4


if __name__ == "__main__":
    raise SystemExit(main())
