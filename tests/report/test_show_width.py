"""``muse show`` of several runs: whole lines into a pipe, and within 80 columns nothing cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.report import show


@pytest.mark.parametrize("columns", ["80", None])
def test_lines_fit_the_columns_and_hold_every_value(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("first", "second-with-a-long-name-" + 60 * "x"):
        shutil.copytree(finished_run, tmp_path / "runs" / name)
    told = CliRunner().invoke(show, [])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert "…" not in told.stdout and "".join(told.stdout.split()).count("x") >= 60
    assert max(map(len, lines)) <= 80 if columns else len(lines) == 3
