"""Tells what conformance suites find, in sentences: the name of a test is one, and so is what it asserts."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping

import attrs
import pytest

LONGEST = 400
"""Characters of a complaint; the rest is for ``pytest`` itself."""

MOST = 3
"""Cases of one test whose complaints are told."""


@attrs.define
class Tally:
    """The cases of one test."""

    sentence: str
    passed: int = 0
    skipped: list[str] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)
    complaints: set[str] = attrs.field(factory=set)
    """Of the failed cases, without the cases' names."""


class ResultReporter:
    """A pytest plugin that prints one line for each test of a class once all its cases have run, and the complaints of
    those that failed. ``titles`` maps classes to what they are about."""

    def __init__(self, titles: Mapping[str, str], stream: io.TextIOBase):
        self.titles = titles
        self.stream = stream
        self.passed = self.failed = self.skipped = 0
        self.started = time.perf_counter()
        self._class = ""
        self._complaints: set[str] = set()
        """Told of this class."""
        self._tally: Tally | None = None

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        _, owner, test = report.nodeid.rsplit("::", 2)
        name, _, case = test.partition("[")
        sentence = name.removeprefix("test_").replace("_", " ")
        if owner != self._class or self._tally is None or self._tally.sentence != sentence:
            self._tell()
            if owner != self._class:
                between = "\n" if self._class else ""
                self._class, self._complaints = owner, set()
                self._say(between + self.titles.get(owner, owner))
            self._tally = Tally(sentence)
        if report.passed:
            self._tally.passed += 1
        elif report.skipped:
            self._tally.skipped.append(_reason(report))
        else:
            # What the heading says already is left out: "wave-eval" of the layer wave is "eval".
            where = case.rstrip("]").removeprefix(self.titles.get(owner, owner).split(" ")[-1]).strip("-")
            self._tally.complaints.add(complaint := _complaint(report))
            self._tally.failed.append(f"{where}: {complaint}" if where else complaint)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        self._tell()

    def fail(self, sentence: str) -> None:
        """Something failed that is not a test."""
        self.failed += 1
        self._say(f"\nFAILED  {sentence}")

    def skip(self, sentence: str) -> None:
        """Something was not checked that is not a test."""
        self.skipped += 1
        self._say(f"\nskipped {sentence}")

    def sum_up(self) -> None:
        """One line about everything."""
        seconds = time.perf_counter() - self.started
        others = f", {self.skipped} skipped" if self.skipped else ""
        self._say(f"\n{self.passed} checks passed, {self.failed} failed{others} in {seconds:.0f} s")

    def _tell(self) -> None:
        tally, self._tally = self._tally, None
        if tally is None:
            return
        cases = tally.passed + len(tally.failed)
        if tally.failed:
            self.failed += 1
            share = f" ({len(tally.failed)} of {cases} cases)" if cases > 1 else ""
            if tally.complaints <= self._complaints:  # one cause, as code that cannot be imported, is told once
                self._say(f"  FAILED  {tally.sentence}{share}, for a reason told above")
                return
            self._complaints |= tally.complaints
            self._say(f"  FAILED  {tally.sentence}{share}")
            for line in "\n".join(tally.failed[:MOST]).splitlines():
                self._say(f"          {line}")
            if len(tally.failed) > MOST:
                self._say(f"          and {len(tally.failed) - MOST} cases more")
        elif tally.passed:
            self.passed += 1
            self._say(f"  ok      {tally.sentence}" + (f" ({cases} cases)" if cases > 1 else ""))
        else:
            self.skipped += 1
            self._say(f"  skipped {tally.sentence}: {tally.skipped[0]}")

    def _say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _complaint(report: pytest.TestReport) -> str:
    """What a failed test asserts, without pytest's explanation of it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    text = re.sub(r"\A(AssertionError|muse_core\.errors\.\w+): ", "", text)
    return text.partition("\nassert ")[0].strip()[:LONGEST]


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
