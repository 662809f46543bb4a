"""Registration and conformance."""

import subprocess
import sys

from muse_core.testing import InitializerSuite, LayerSuite


class TestZeta(InitializerSuite):
    name = "zeta"


class TestOrthogonal(InitializerSuite):
    name = "orthogonal"


class TestRandomSpectrum(InitializerSuite):
    name = "random-spectrum"


class TestZetaPositions(LayerSuite):
    name = "zeta-positions"


def test_listing_imports_no_torch():
    code = "import sys, muse_zeta_init.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
