"""Registration, and conformance of what tests/test_conformance.py does not vary: it takes the defaults."""

import subprocess
import sys

from muse_core.testing import LayerSuite


class TestWindow(LayerSuite):
    name = "attention"
    options = {"window": 5, "key_value_heads": 2}


class TestConvolvedAttention(LayerSuite):
    name = "attention"
    options = {"convolution": 3, "query_key_norm": True, "key_value_heads": 2}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestConvolvedFeedForward(LayerSuite):
    name = "feed-forward"
    options = {"convolution": 3}
    test_compiles = None


def test_listing_imports_no_torch():
    code = "import sys, muse_baseline.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
