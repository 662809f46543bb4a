"""Checkpoints that are written while training goes on: which error is told where both fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from muse_core.fault_injection import installed
from muse_core.selftest.reliability.processes import at_call, fail
from muse_core.training.checkpointer import Checkpointer


def test_the_error_of_training_is_told_where_the_writing_fails_too(
    table: Callable[..., dict[str, Any]], go: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Checkpointer._write, []

    def broken(self: Checkpointer, *given: Any) -> Any:
        calls.append(given)
        if len(calls) > 1:  # the first is of the start
            raise RuntimeError("as torch says it of a lost connection")
        return write(self, *given)

    monkeypatch.setattr(Checkpointer, "_write", broken)
    recipe = table(checkpoint={"every": 2, "background": True}, train={"steps": 6})
    with installed({"batch": at_call(3, fail)}), pytest.raises(ZeroDivisionError, match="planted"):
        go(recipe)
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="lost connection"):
        go(recipe, "other")
