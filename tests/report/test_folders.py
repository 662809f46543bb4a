"""Where reports of several runs go: never over a run's own files, nor over those of other runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from muse_core.cli import muse


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(muse, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [
    ["compare", "one", "two", "-o", "two"],
    ["compare", "one", "two", "-o", "three"],
    ["report", "one", "two", "-o", "three"],
    ["report", "one", "-o", "three"],
    ["compare", "p.toml", "-o", "three"],
    ["compare", "p.toml", "-o", "three", "--report"],
])
def test_a_run_is_no_folder_for_a_report_of_others(made_run, command: list[str]) -> None:
    for name in ("one", "two", "three"):
        made_run(name)
    Path("r.toml").write_text('name = "tiny"\n[model]\nblock = ["feed-forward"]\n')
    Path("p.toml").write_text(
        'name = "plan"\nbaseline = "a"\nseeds = [1]\n'
        'arms = [{ name = "a", recipe = "r.toml" }, { name = "b", recipe = "r.toml", set = ["model.depth=3"] }]\n'
    )
    before = files(Path())
    refused = invoke(*command)
    assert refused.exit_code == 2 and f"--output: {command[command.index('-o') + 1]}: holds a run" in refused.output
    assert files(Path()) == before


def test_the_own_report_of_a_run_lies_in_it(made_run) -> None:
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    run = made_run("one")
    assert invoke("report", run, "-o", "one").exit_code == 0 and (run / "report.html").is_file()


def test_comparisons_of_other_runs_have_other_folders(made_run) -> None:
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    pairs = [[made_run(f"{place}/{arm}/{name}") for name in ("test-1", "test-2")]
             for place, arm in (("x", "att"), ("x", "ff"), ("y", "ff"))]
    across = [pairs[0][0], pairs[1][0]]
    for runs in (*pairs, across):
        assert invoke("compare", *runs).exit_code == 0
    names = ["test-1-against-test-2", "ff-test-1-against-ff-test-2", "ff-test-1-against-ff-test-2-2",
             "att-test-1-against-ff-test-1"]
    for name, runs in zip(names, (*pairs, across), strict=True):
        found = json.loads(Path("comparisons", name, "report.json").read_text())
        assert [one["path"] for one in found["runs"]] == [str(run) for run in runs]
    again = invoke("compare", *pairs[1])
    assert str(Path("comparisons", names[1])) in again.output
    assert sorted(path.name for path in Path("comparisons").iterdir()) == sorted(names), "the same runs, made anew"
