"""Registration, and conformance of what tests/test_conformance.py does not vary: it takes the defaults."""

import subprocess
import sys

from muse_core.testing import LayerSuite


class TestChannels(LayerSuite):
    name = "resolvent"
    options = {"heads": 4, "output": "channels"}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestFeedback(LayerSuite):
    name = "resolvent"
    options = {"heads": 8, "potential": ["non-hermitian", "memory-feedback"], "phase": "shift"}


def test_listing_imports_no_torch():
    code = "import sys, muse_resolvent.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
