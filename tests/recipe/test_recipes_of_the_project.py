"""Every recipe of the project builds: what ``muse-run --dry-run`` shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from muse_core.cli.run import main
from muse_core.recipe import read_recipe
from muse_core.training.setup import set_up

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
EXPERIMENTS = [path for path in sorted(FOLDER.glob("experiments/*.toml")) if not path.stem.endswith(".plan")]
BYTES = ["--set", 'data={use="state-of-the-union", tokenizer="bytes"}']
"""Learning a byte-pair vocabulary takes up to a minute; the tokenizer has tests of its own."""
SHALLOW = [*BYTES, "--set", "model.depth=2"]
"""For recipes that want a GPU: two of their blocks, at full width."""
FRESH = ["--set", "init.from="]
"""For recipes that begin with a run, which is not here."""
CHANGES = {"phase2_from_phase1": FRESH, "phase2_256x4": BYTES, "phase2_512x6": SHALLOW, "phase2_1024x12": SHALLOW}

LARGER = ("phase2_512x6", "phase2_1024x12")
"""The layers of phase2_256x4 in other sizes."""


@pytest.mark.parametrize("path", [*RECIPES, *EXPERIMENTS], ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_dry_run(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    task = "mqar" in path.stem  # which makes its own examples, without a tokenizer
    changes = [] if task else BYTES if path in EXPERIMENTS else CHANGES.get(path.stem, [])
    shown = CliRunner().invoke(main, [str(path), "--dry-run", *changes])
    assert shown.exit_code == 0, shown.output
    assert "dry run: no run was begun" in shown.output


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in LARGER], ids=lambda path: path.stem)
def test_passes_the_causality_gate(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recipe is refused falsely, those with routers among them."""
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    shorter = ["train.sequence_length=128", "train.batch_size=4", "train.micro_batch=2"]
    shorter += ["model.depth=2"] if path.stem.endswith("_768") else []
    changes = [one for one in (*CHANGES.get(path.stem, []), *BYTES) if one != "--set"]
    checked = read_recipe(path, [*changes, *shorter, "train.device=cpu"])
    assert set_up(checked.recipe, checked.registry).causality_gate().startswith("causality gate: no output depends")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_starts_with_what_it_shows_its_cost_and_what_to_expect(path: Path) -> None:
    comment = "".join(
        line[2:] + " " for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ).lower()
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert "\nformat = 1" not in path.read_text(encoding="utf-8"), "of the version before"
    assert "control" in comment or ("cost" in comment and ("expect" in comment or "result" in comment))
