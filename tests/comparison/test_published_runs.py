"""The runs behind a page of results: the command that the page names computes the page's figures from them."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from muse_core.cli.compare import compare

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "peers.md"
ROWS = {
    "gated-deltanet": "Gated DeltaNet", "mamba2": "Mamba-2", "mamba3": "Mamba-3", "kda": "KDA", "rwkv7": "RWKV-7",
    "gated-deltanet-2": "Gated DeltaNet-2", "phase5": "`phase5_10m`",
}


@pytest.fixture(scope="module")
def section() -> str:
    text = PAGE.read_text(encoding="utf-8")
    return text.partition("### KDA, Gated DeltaNet-2, GLA and RWKV-7\n")[2].partition("\n### ")[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons")
    with tarfile.open(ROOT / "docs" / "results" / "data" / "peers-muon.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "peers-muon"


def computed(section: str, runs: Path, *more: str) -> dict[str, Any]:
    """What the page's command, with `more` options, reports: no run of it is left to run."""
    (command,) = re.findall(r"^    muse compare ((?:.*\\\n)*.*)$", section, flags=re.MULTILINE)
    plan, *options = shlex.split(command.replace("\\\n", " "))
    ended = CliRunner().invoke(compare, [str(ROOT / plan), *options, *more, "-o", str(runs)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads((runs / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(section: str, runs: Path) -> dict[str, Any]:
    return computed(section, runs)


def shown(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.3f}, {ratio['low']:.3f} to {ratio['high']:.3f}"


def cells(section: str, name: str) -> list[str]:
    row = next(line for line in section.splitlines() if line.startswith(f"| {ROWS[name]} |"))
    return [cell.strip(" *") for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", ROWS)
def test_the_page_has_what_the_runs_give(section: str, report: dict[str, Any], name: str) -> None:
    (found,) = [arm for arm in report["arms"] if arm["name"] == name]
    state, _, *seeds, mean, ratio = cells(section, name)[1:9]
    assert state == f"{found['state']:,}"
    by_seed = found["by_seed"]
    assert seeds == [f"{by_seed[seed]:.4f}" if seed in by_seed else "" for seed in ("1", "2", "3", "4")]
    assert mean == f"{statistics.fmean(by_seed.values()):.4f}"
    if name != report["baseline"]:
        assert ratio == shown(found["against_baseline"])


@pytest.mark.parametrize("peer", [name for name in ROWS if name != "phase5"])
def test_so_has_its_last_column(section: str, runs: Path, peer: str) -> None:
    report = computed(section, runs, "--baseline", peer)
    (found,) = [arm for arm in report["arms"] if arm["name"] == "phase5"]
    assert cells(section, peer)[-1] == shown(found["against_baseline"])


@pytest.mark.parametrize("name,row", [("kda", "KDA"), ("gated-deltanet-2", "Gated DeltaNet-2")])
def test_first_decays_of_another_scale_give_what_the_page_says(section: str, runs: Path, name: str, row: str) -> None:
    arm = f"{name}-decay-0.33"
    report = computed(section, runs, "--arms", f"{name},{arm}", "--baseline", name, "--seeds", "1,2")
    (found,) = [one for one in report["arms"] if one["name"] == arm]
    by_seed = " | ".join(f"{found['by_seed'][seed]:.4f}" for seed in ("1", "2"))
    assert f"| {row}, decays of fla's scale | 0.02 | {by_seed} | {shown(found['against_baseline'])} |" in section


def test_every_run_has_its_recipe_and_figures_and_nothing_of_the_machine(runs: Path) -> None:
    found = sorted(path.parent for path in runs.rglob("summary.json"))
    assert len(found) == 38
    for run in found:
        assert {"recipe.toml", "summary.json", "held_out.json"} <= {path.name for path in run.iterdir()}
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert summary["accepted_steps"] == 400 and summary["held_out_split"] == "test"
        assert not any("/tmp" in path.read_text(encoding="utf-8") for path in run.iterdir() if path.is_file())
