"""The resonance filter keeps the contract of filters, with every basis."""

from muse_core.testing import FilterSuite


class TestResonance(FilterSuite):
    name = "resonance"


class TestRandomBasis(FilterSuite):
    name = "resonance"
    options = {"basis": "random", "threshold": 0.5, "sharpness": 2.0}
