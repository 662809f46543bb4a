"""Registration and conformance."""

import subprocess
import sys

from muse_core.testing import PotentialSuite


class TestHermitian(PotentialSuite):
    name = "hermitian"


class TestNonHermitian(PotentialSuite):
    name = "non-hermitian"


class TestMemoryFeedback(PotentialSuite):
    name = "memory-feedback"


def test_listing_imports_no_torch():
    code = "import sys, muse_potentials.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
