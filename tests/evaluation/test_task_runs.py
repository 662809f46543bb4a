"""What is said of a run on a task, which has no text: bits by counted token, and a report without a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from muse_core.cli.eval import evaluate
from muse_core.cli.run import main
from muse_core.recipe import to_toml


@pytest.fixture(scope="module")
def ended(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("task")
    table = small_recipe | {"data": {"use": "mqar", "vocabulary": 64, "pairs": 4}}
    (folder / "r.toml").write_text(to_toml(table))
    options = ["--set", "train.steps=2", "--run-dir", str(folder / "run"), "--report"]
    return CliRunner().invoke(main, [str(folder / "r.toml"), *options], catch_exceptions=False), folder / "run"


def test_the_report_has_its_parameters_and_says_why_there_is_no_sample(ended: tuple[Result, Path]) -> None:
    result, run = ended
    assert result.exit_code == 0 and "report: " in result.output and "sample" not in result.output, result.output
    made = json.loads((run / "report.json").read_text())
    assert made["sample"] is None and made["parameters"]
    assert "No sample: a task has no text." in (run / "report.html").read_text()


def test_bits_are_by_counted_token(ended: tuple[Result, Path]) -> None:
    _, run = ended
    asked = CliRunner().invoke(evaluate, [str(run), "--suite", "held-out"], catch_exceptions=False)
    assert "bits per token" in asked.stdout and "per byte" not in asked.stdout
    (row,) = json.loads(CliRunner().invoke(evaluate, [str(run), "--suite", "held-out", "--json"]).stdout)
    assert row["bits_per"] == "token" and row["bits_per_byte"] > 0
