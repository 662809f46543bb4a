"""Gradient safety keeps the contract of monitors, under every policy."""

from muse_core.testing import MonitorSuite


class TestGradientSafety(MonitorSuite):
    name = "gradient-safety"
