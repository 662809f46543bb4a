"""Probes in a run: their failure warns or halts, after the last step too; what they find is in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from muse_gradient_safety.monitor import GradientSafety

from muse_core.cli.launch import show
from muse_core.errors import Halted, PluginError, RecipeError
from muse_core.metrics.jsonl import read_rows
from muse_core.recipe import check_table
from muse_core.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("punctual")
Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

HARD = {"use": "niah-probe", "needles": 2, "budget": 1.0, "minimum_margin": 50.0}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "events.jsonl") if row["event"] == kind]


@pytest.mark.parametrize("every, where", [(3, "at step 3"), (4, "after step 4")], ids=["before the end", "at the end"])
def test_a_failed_probe_halts_by_option(table: Table, go: Go, tmp_path: Path, every: int, where: str) -> None:
    """At the last step there is no step after it whose judgement could notice."""
    with pytest.raises(Halted, match=f"halted {where} by niah-probe: memory gains") as caught:
        go(table(train={"steps": 4}, monitors=[HARD | {"failure": "halt", "every": every}]))
    assert caught.value.exit_code == 4
    (halt,) = events(tmp_path / "run", "halt")
    assert halt["step"] == int(where[-1]) and halt["monitor"] == "niah-probe" and "memory gains" in halt["reason"]
    assert {"onset", "loss", "gradient_norm"} <= set(halt)


@pytest.mark.parametrize("every", [3, 4])
def test_a_failed_probe_warns_by_default(table: Table, go: Go, tmp_path: Path, every: int) -> None:
    summary = go(table(train={"steps": 4}, monitors=[HARD | {"every": every}]))
    assert summary["steps"] == 4 and summary["probes"]["niah-probe"]["failed"] == 1.0
    (warning,) = events(tmp_path / "run", "warning")
    assert "less than 50" in warning["reason"]


def test_a_monitor_that_finds_nothing_to_watch_is_refused_before_the_first_step(
    table: Table, go: Go, tmp_path: Path
) -> None:
    """It ended the run at the first probe, after hours, or was never asked."""
    recipe = table(monitors=[{"use": "gate-ablation", "every": 1000, "match": "*.door"}])
    with pytest.raises(RecipeError, match=r"finds no gate: no module is named like '\*.door'"):
        go(recipe)
    assert not Checkpoints(tmp_path / "run").generations()
    with pytest.raises(RecipeError, match="finds no gate"):
        show(check_table(recipe))


def test_what_a_monitor_raises_before_the_first_step_names_it(
    table: Table, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradientSafety, "check_model", lambda self, model: 1 / 0, raising=False)
    with pytest.raises(PluginError, match="monitor 'gradient-safety' of muse-gradient-safety .*ZeroDivisionError"):
        go(table(monitors=["gradient-safety"]))


def test_gates_are_pressed_measured_and_judged_in_a_run(table: Table, go: Go, tmp_path: Path) -> None:
    """λ falls from 10 towards 0.1 by equal factors a step; the loss of the records is without it."""
    blocks = [{"use": "fast-weights", "heads": 2, "period": 16}, {"use": "polarisation"}]
    monitor = {"use": "gate-ablation", "every": 8, "tokens": 48, "budget": 1.0, "after": 0}
    recipe = table(model={"block": blocks, "depth": 1}, monitors=[monitor])
    summary = go(recipe)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    weights = [row["blocks.0.polarisation/weight"] for row in rows]
    assert weights == pytest.approx([10.0 * 0.01 ** (step / 8) for step in range(8)], rel=1e-5)
    for row in rows:
        assert row["gate_load"] == row["blocks.0.polarisation/gate_load"]
        assert 0.0 < row["gate_entropy"] <= 1.0
        expected = row["blocks.0.polarisation/weight"] * row["blocks.0.polarisation/undecided"]
        assert row["blocks.0.polarisation/polarisation"] == pytest.approx(expected, rel=1e-4)
    assert rows[0]["loss"] < 6.0 < rows[0]["blocks.0.polarisation/polarisation"]
    judged = summary["probes"]["gate-ablation"]
    assert judged["step"] == 8 and sum(judged[one] for one in ("useful", "idle", "harmful", "undecided")) == 1
