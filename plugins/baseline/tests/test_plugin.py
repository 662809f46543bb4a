"""Registration."""

import subprocess
import sys

from muse_baseline.plugin import muse_layers

from muse_core.component import load


def test_registered_implementations_exist():
    assert {row.name: load(row.implementation).__name__ for row in muse_layers()} == {
        "attention": "Attention",
        "feed-forward": "FeedForward",
    }


def test_listing_imports_no_torch():
    code = "import sys, muse_baseline.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
