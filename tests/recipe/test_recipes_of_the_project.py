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
SHALLOW = ["--set", "model.depth=2"]
"""Two equal blocks at full width say of a stack what all of them say."""
FRESH = ["--set", "init.from="]
"""For recipes that begin with a run, which is not here."""
CHANGES = {
    "phase2_from_phase1": FRESH,
    "phase2_256x4": BYTES,
    "phase2_512x6": [*BYTES, *SHALLOW],
    "phase2_1024x12": [*BYTES, *SHALLOW],
    "cvfp_base": BYTES,
    "cvfp_768": [*BYTES, "--set", "train.sequence_length=32"],  # its network is called once a token
}

LARGER = ("phase2_512x6", "phase2_1024x12")
"""The layers of phase2_256x4 in other sizes."""


def repeats_one_block(path: Path) -> bool:
    """A stack of 28 million parameters without layers at some depths alone; at every depth, dry runs of plans in
    tests/docs build it."""
    return path.stem.endswith(("_28m", "_512x6", "_512x9")) and " at = " not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*RECIPES, *EXPERIMENTS], ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_dry_run(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    read_recipe(path)  # as it stands
    task = "mqar" in path.stem  # which makes its own examples, without a tokenizer
    changes = [] if task else BYTES if path in EXPERIMENTS else CHANGES.get(path.stem, [])
    changes = [*changes, *SHALLOW] if path in EXPERIMENTS and repeats_one_block(path) else changes
    shown = CliRunner().invoke(main, [str(path), "--dry-run", *changes])
    assert shown.exit_code == 0, shown.output
    assert "dry run: no run was begun" in shown.output


AT_EVERY_DEPTH = ("phase1_base", "phase2_base", "phase5_base", "phase5_10m", "phase5_wide_10m", "early_exit")
"""Those that the gate reads whole: with layers or an exit at some depths alone, and two whose resonances enlarge
rounding by a factor a layer, of whose layers the others have two."""


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in LARGER], ids=lambda path: path.stem)
def test_passes_the_causality_gate(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recipe is refused or warned of falsely, those with routers among them."""
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    length = 64 if path.stem.startswith("cvfp") else 128  # its network is called once a token
    shorter = [f"train.sequence_length={length}", "train.batch_size=4", "train.micro_batch=2"]
    shorter += [] if path.stem in AT_EVERY_DEPTH else ["model.depth=2"]
    changes = [one for one in (*CHANGES.get(path.stem, []), *BYTES) if one != "--set"]
    checked = read_recipe(path, [*changes, *shorter, "train.device=cpu"])
    warned: list[str] = []
    said = set_up(checked.recipe, checked.registry).causality_gate(warned.append)
    assert said.startswith("causality gate: no output depends") and not warned


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_starts_with_what_it_shows_its_cost_and_what_to_expect(path: Path) -> None:
    comment = "".join(
        line[2:] + " " for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ).lower()
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert "\nformat = 1" not in path.read_text(encoding="utf-8"), "of the version before"
    assert "control" in comment or ("cost" in comment and ("expect" in comment or "result" in comment))
