"""Cases of the conformance suites beside the defaults, which tests/test_conformance.py runs for every component."""

from __future__ import annotations

from muse_core.testing import LayerSuite, RouterSuite


class TestExpertsOfCapacity(LayerSuite):
    name = "experts"
    options = {"experts": 4, "capacity": 0.75, "router": {"use": "scattering", "map": "bins", "top_k": 2}}


class TestResonance(RouterSuite):
    name = "scattering"
    options = {"map": "bins", "top_k": 1, "resonant_top_k": 3, "resonance": 0.5}


class TestActByPhase(RouterSuite):
    name = "act"
    options = {"halting": "phase"}
