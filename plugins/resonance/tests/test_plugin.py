"""Listing."""

import subprocess
import sys


def test_listing_imports_no_torch():
    code = "import sys, muse_resonance.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
