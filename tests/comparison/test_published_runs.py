"""The runs behind a page of results: the command that the page names computes the page's figures from them."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

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
    return unpacked("peers-muon", tmp_path_factory.mktemp("comparisons"))


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


class Archive(NamedTuple):
    """Runs of an archive, by a page whose command computes figures from them."""

    page: str
    runs: int
    steps: int
    arm: str
    """Of which the page shows the ratio to the baseline,"""
    shown: str
    """so."""
    rows: dict[str, str]
    """Of each variant, what its row has before its bits by seed, its name first."""


ARCHIVES = {
    "peers-muon": Archive("peers.md", 38, 400, "", "", {}),  # computed above
    "peers-28m-muon": Archive(
        "peers.md", 18, 400, "phase5-wide", "0.966, 0.956 to 0.976",
        {"gated-deltanet-hybrid": "the hybrid | 0.04", "phase5-wide": "`phase5_wide_28m` | 0.02"},
    ),
    "embedding": Archive(
        "peers.md", 11, 400, "gated-convolution-1", "0.996, 0.992 to 1.001",
        {"phase2-1": "`phase2_10m` | 115,712 | 4e-3",
         "gated-convolution-1": "a gated convolution in the resolvent's place | 118,272 | 4e-3"},
    ),
    "tokens-6104": Archive(
        "tokens-and-seconds.md", 4, 6104, "phase5-wide", "0.982, 0.961 to 1.003",
        {"gated-deltanet-hybrid": "200,015,872 | the hybrid", "phase5-wide": "`phase5` with windows of 512"},
    ),
}


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(ROOT / "docs" / "results" / "data" / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def test_every_archive_is_one_that_is_tested() -> None:
    assert {path.name.partition(".")[0] for path in (ROOT / "docs" / "results" / "data").iterdir()} == set(ARCHIVES)


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_run_has_its_recipe_and_figures_and_nothing_of_the_machine(name: str, tmp_path: Path) -> None:
    found = sorted(path.parent for path in unpacked(name, tmp_path).rglob("summary.json"))
    assert len(found) == ARCHIVES[name].runs
    for run in found:
        assert {"recipe.toml", "summary.json", "held_out.json"} == {path.name for path in run.iterdir()}
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert summary["accepted_steps"] == ARCHIVES[name].steps
        assert summary["held_out_split"] == ("test" if run.name.startswith("test-") else "validation")
        assert not any("/tmp" in path.read_text(encoding="utf-8") for path in run.iterdir() if path.is_file())


@pytest.mark.parametrize("name", [name for name, archive in ARCHIVES.items() if archive.arm])
def test_the_command_beside_an_archive_gives_what_its_page_shows(name: str, tmp_path: Path) -> None:
    archive = ARCHIVES[name]
    text = (PAGE.parent / archive.page).read_text(encoding="utf-8")
    unpacking = f"    mkdir -p comparisons && tar -xJf docs/results/data/{name}.tar.xz -C comparisons\n"
    command = text.partition(unpacking)[2]
    report = computed(command.partition("\n\n")[0], unpacked(name, tmp_path))
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert shown(arms[archive.arm]["against_baseline"]) == archive.shown and archive.shown in text
    for arm, before in archive.rows.items():
        by_seed = " | ".join(f"{bits:.4f}" for _, bits in sorted(arms[arm]["by_seed"].items()))
        assert f"| {before} | {by_seed} |" in text, arm
    plain = text.replace("**", "")
    for arm, swept in report["sweep"].items():
        if not swept:  # the command names one value
            continue
        values = " | ".join(f"{bits:.4f}" for bits in swept.values())
        assert f"| {archive.rows[arm].partition(' | ')[0]} | {values} |" in plain, arm
    assert not report["at_the_edge"]
