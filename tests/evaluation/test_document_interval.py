"""The interval of a single run takes rows of one document together."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muse_core.cli.eval import FEW, _on_terminal, _show
from muse_core.evaluation.held_out import HeldOut, Rows, interval
from muse_core.evaluation.suites import evaluate
from muse_core.evaluation.suites.losses import _row
from muse_core.report.tables import interval_over, weighs_as


def test_more_rows_of_the_same_documents_do_not_narrow_the_interval() -> None:
    hardness = np.exp(0.3 * np.random.default_rng(0).normal(size=30))

    def width(rows: int, *, grouped: bool = True) -> float:
        documents = np.repeat(np.arange(30), rows)
        low, high = interval(50.0 * hardness[documents], np.full(30 * rows, 100), documents if grouped else None)
        return high - low

    assert abs(width(25) / width(1) - 1) < 0.02
    assert width(25) > 4 * width(25, grouped=False)


def test_a_single_document_has_the_spread_of_its_rows_and_never_none() -> None:
    rows = np.array([50.0, 60.0, 70.0, 40.0])
    of_rows = interval(rows, np.full(4, 100), None)
    assert of_rows[0] < rows.mean() / 100 < of_rows[1]
    assert interval(rows, np.full(4, 100), np.full(4, 7)) == of_rows


def test_few_documents_are_told_beside_the_interval() -> None:
    assert weighs_as({}) == "" and weighs_as({"held_out_documents": 40.0}) == ""
    assert weighs_as({"held_out_documents": 1.2}) == ", too narrow: the text weighs as 1 document of equal size"
    assert weighs_as({"held_out_documents": 6.3}).endswith("weighs as 6 documents of equal size")


def test_the_interval_of_a_single_document_is_said_to_be_of_its_rows() -> None:
    assert interval_over({"held_out_documents": 1.0}) == "95 % over rows of one document, not seeds"
    assert interval_over({"held_out_documents": 1.2}) == interval_over({}) == "95 % over documents, not seeds"


def test_a_row_says_what_its_interval_rests_on_and_whether_that_is_little() -> None:
    def row(documents: list[int], weight: float = 50.0) -> dict[str, Any]:
        parts = {name: np.ones(len(documents)) for name in ("nats", "tokens", "bytes", "correct")}
        rows = Rows(document=np.array(documents), **parts)
        found = HeldOut(loss=1.0, bits_per_byte=1.0, low=0.9, high=1.1, documents=weight, tokens=9, bytes=9,
                        accuracy=0.5, state_numbers=0, rows=rows)
        return _row(SimpleNamespace(where="a text", is_task=False), 8, found)

    told = [(one["low"], one["high"], one["interval_by"]) for one in (row([3]), row([3, 3]), row([3, 4]))]
    assert told == [(None, None, "nothing, there is one window"), (0.9, 1.1, "windows"), (0.9, 1.1, "documents")]
    many = [*range(100)]
    few = [row(many, weight)["few_documents"] for weight in (39.9, 40.0)]
    assert few == [True, False] and row(many)["documents"] == 100, "of unequal documents many may be few"


def test_losses_that_are_no_numbers_are_not_taken_for_one_window() -> None:
    parts = {name: np.ones(2) for name in ("nats", "tokens", "bytes", "correct")}
    found = HeldOut(loss=math.nan, bits_per_byte=math.nan, low=math.nan, high=math.nan, documents=2.0, tokens=2,
                    bytes=2, accuracy=0.0, state_numbers=0, rows=Rows(document=np.array([3, 4]), **parts))
    assert found.interval is not None and all(map(math.isnan, found.interval))


def test_muse_eval_tells_few_documents_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    for few, low, told in ((True, 0.5, True), (True, None, False), (False, 0.5, False)):
        row = {"length": 8, "few_documents": few, "low": low, "high": 1.0}
        _show({"run": "r", "step": 1, "suites": {"held-out": [row]}})
        assert (FEW in capsys.readouterr().out) == told


def test_a_terminal_is_told_which_suite_is_measured_and_a_pipe_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_terminal("length")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    begun: list[str] = []
    task = SimpleNamespace(is_task=True, texts_would_not_do=True)
    assert evaluate(task, ["length", "recall"], asked=False, begins=begun.append).keys() == set(begun)
    _on_terminal("length")
    _on_terminal("")
    assert "length …" in (said := capsys.readouterr().err) and said.endswith("\x1b[K")
