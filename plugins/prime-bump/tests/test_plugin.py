"""Registration and conformance."""

import subprocess
import sys

from muse_core.testing import InitializerSuite, PotentialSuite


class TestPotential(PotentialSuite):
    name = "prime-bump"


class TestShuffled(PotentialSuite):
    name = "prime-bump"
    options = {"bumps": "shuffled", "context": 7, "schedule": "exponential"}


class TestGaussian(PotentialSuite):
    name = "prime-bump"
    options = {"bumps": "gaussian", "epsilon": [0.5, 0.5], "schedule": "linear"}


class TestInitializer(InitializerSuite):
    name = "prime-bump"


class TestRandomIntegers(InitializerSuite):
    name = "prime-bump"
    options = {"integers": "random", "epsilon": 0.25}


def test_listing_imports_no_torch():
    code = "import sys, muse_prime_bump.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
