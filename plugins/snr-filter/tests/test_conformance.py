"""The snr filter keeps the contract of filters."""

from muse_core.testing import FilterSuite


class TestSnr(FilterSuite):
    name = "snr"


class TestStrongSnr(FilterSuite):
    name = "snr"
    options = {"threshold": 1.0, "gamma_boost": 4.0, "rate_boost": 2.0}
