"""The script beside the plans that reads gradient norms of a comparison's runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "experiments" / "gradient_stability.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gradient_stability", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, norms: list[float | str]) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    rows = [
        {"event": "train", "sequence": step, "attempt": 1, "step": step, "gradient_norm": norm, "loss": 2.0}
        for step, norm in enumerate(norms)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_norms_of_the_steps_after_the_warmup(script: Any, tmp_path: Path) -> None:
    run(tmp_path / "one" / "seed-1", [90.0, 1.0, 2.0, 3.0, 10.0])
    run(tmp_path / "one" / "seed-2", [90.0, 4.0, 4.0, 4.0, 4.0])
    *_, line = script.table(tmp_path, 1)
    assert line == "| one | 2 | 3.250 | 4.00 | 0.0% | 2.0000 |"


def test_a_run_without_steps_is_left_out_and_named(script: Any, tmp_path: Path) -> None:
    """Such as one that had no memory left for its first step, or that ended within the warm-up."""
    run(tmp_path / "one" / "seed-1", [])
    run(tmp_path / "other" / "seed-1", [5.0, 1.0])
    *table, said = script.table(tmp_path, 1)
    assert table[2:] == ["| other | 1 | 1.000 | 1.00 | 0.0% | 2.0000 |"]
    assert said == "one/seed-1: no step from 1 on was logged, left out"


def test_norms_that_are_no_numbers_are_far_above(script: Any, tmp_path: Path) -> None:
    run(tmp_path / "one" / "seed-1", [1.0, "nan", 2.0, "inf", 9.0, 2.0])
    run(tmp_path / "other" / "seed-1", [1.0, "nan", "nan"])
    _, _, one, other = script.table(tmp_path, 1)
    assert one == "| one | 1 | 2.000 | 4.50 | 60.0% | 2.0000 |"
    assert other == "| other | 1 | nan | nan | 100.0% | 2.0000 |"
