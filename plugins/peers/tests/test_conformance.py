"""The published mixers keep the contract of memory layers at odd sizes too; tests/ does the same for their defaults."""

from muse_core.testing.layers import LayerSuite, MemoryLayerSuite


class TestGatedDeltaNetOfOddSizes(MemoryLayerSuite):
    name = "gated-deltanet"
    options = {"heads": 3, "key_size": 5, "expand_value": 1.4, "convolution": 2, "negative_eigenvalues": True}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestKdaOfOddSizes(MemoryLayerSuite):
    name = "kda"
    options = {"heads": 3, "key_size": 5, "expand_value": 1.4, "convolution": 2, "negative_eigenvalues": True}
    test_compiles = None


class TestKdaWithTheDecayOfASignal(MemoryLayerSuite):
    name = "kda"
    options = {"heads": 2, "key_size": 4, "decay": "signal"}
    test_compiles = None


class TestGatedDeltaNet2OfOddSizes(MemoryLayerSuite):
    name = "gated-deltanet-2"
    options = {"heads": 3, "key_size": 5, "expand_value": 1.4, "convolution": 2, "negative_eigenvalues": True}
    test_compiles = None


class TestGlaOfOddSizes(MemoryLayerSuite):
    name = "gla"
    options = {"heads": 1, "rank": 3}
    test_compiles = None


class TestRwkv7OfOneHead(MemoryLayerSuite):
    name = "rwkv7"
    options = {"heads": 1}
    test_compiles = None


class TestMamba2OfOddSizes(MemoryLayerSuite):
    name = "mamba2"
    options = {"states": 5, "head_size": 8, "expand": 1.0, "convolution": 3}
    test_compiles = None


class TestMamba3OfOddSizes(MemoryLayerSuite):
    name = "mamba3"
    options = {"states": 7, "head_size": 8, "expand": 1.0, "rotated": 0.9}
    test_compiles = None


class TestRgLruOfOddSizes(LayerSuite):
    name = "rg-lru"
    options = {"expand": 1.3, "heads": 3, "convolution": 2}
    test_compiles = None


class TestGatedConvolution(LayerSuite):
    name = "rg-lru"
    options = {"recurrence": False, "heads": 1, "convolution": 3}
    test_compiles = None
