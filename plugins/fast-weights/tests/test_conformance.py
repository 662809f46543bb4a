"""The hebbian memory keeps the contract of memory layers at odd sizes too; tests/ does the same for its defaults."""

from muse_core.testing.layers import MemoryLayerSuite


class TestHebbianOfOddSizes(MemoryLayerSuite):
    name = "fast-weights"
    options = {"rule": "hebbian", "heads": 3, "key_size": 5, "value_size": 7, "convolution": 2, "base_decay": 0.1}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestHebbianWithoutConvolution(MemoryLayerSuite):
    name = "fast-weights"
    options = {"heads": 1, "convolution": 0, "output_norm": False, "gate": False}
    test_compiles = None


class TestHebbianLikeGatedDeltaNet(MemoryLayerSuite):
    name = "fast-weights"
    options = {"taps": "uniform", "decay_form": "product", "most_rate": 2.0, "rotation": "positions"}
    test_compiles = None


class TestHebbianTurnedBySpectralShift(MemoryLayerSuite):
    name = "fast-weights"
    options = {"rotation": "spectral-shift", "heads": 2, "key_size": 5}
    test_compiles = None


class TestDeltaOfTwoWrites(MemoryLayerSuite):
    name = "fast-weights"
    options = {"writes": 2, "heads": 2, "key_size": 5, "taps": "uniform"}
    test_compiles = None


class TestDeltaWithTheDecayOfASignal(MemoryLayerSuite):
    name = "fast-weights"
    options = {"decay": "signal", "heads": 2, "key_size": 5}
    test_compiles = None


class TestDeltaMixedByAResolvent(MemoryLayerSuite):
    name = "fast-weights"
    options = {
        "mixing": "resolvent", "heads": 2, "key_size": 5, "value_size": 6, "hamiltonians": 8,
        "potential": ["non-hermitian"], "gate_activation": "sigmoid",
    }  # fmt: skip
