"""Registration and conformance; tests/test_conformance.py takes the layer."""

import subprocess
import sys

from muse_core.testing import InitializerSuite


class TestZeta(InitializerSuite):
    name = "zeta"


class TestOrthogonal(InitializerSuite):
    name = "orthogonal"


class TestRandomSpectrum(InitializerSuite):
    name = "random-spectrum"


def test_listing_imports_no_torch():
    code = "import sys, muse_zeta_init.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
