"""Registration."""

import subprocess
import sys

from muse_potentials.plugin import muse_potentials

from muse_core.component import load


def test_registered_implementations_exist():
    assert {row.name: load(row.implementation).__name__ for row in muse_potentials()} == {
        "hermitian": "Hermitian",
        "non-hermitian": "NonHermitian",
        "memory-feedback": "MemoryFeedback",
    }


def test_listing_imports_no_torch():
    code = "import sys, muse_potentials.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
