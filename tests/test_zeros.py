"""Two plugins store zeta zeros (docs/decisions/zeros-in-each-plugin.md); the tables must say the same."""

from __future__ import annotations

from pathlib import Path

PLUGINS = Path(__file__).parent.parent / "plugins"


def test_the_stored_zeros_are_the_same() -> None:
    longer = (PLUGINS / "zeta-init/src/muse_zeta_init/zeros.txt").read_text().split()
    shorter = (PLUGINS / "resonance/src/muse_resonance/zeros.txt").read_text().split()
    assert shorter == longer[: len(shorter)]
