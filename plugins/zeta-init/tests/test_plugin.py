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
    expected_failures = {"test_a_large_change_does_reach_its_own_token": "positions do not read the stream"}


def test_listing_imports_no_torch():
    code = "import sys, muse_zeta_init.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
