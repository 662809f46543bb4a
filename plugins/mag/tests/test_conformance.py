"""The layers at odd sizes and with short windows and shards; tests/ does the same for their defaults."""

from muse_core.testing.layers import LayerSuite


class TestSlidingWindowOfFive(LayerSuite):
    name = "sliding-window"
    options = {"heads": 4, "key_value_heads": 2, "window": 5, "persistent": 3, "convolution": 3}
    test_compiles = None  # the defaults compile; a variant costs seconds more
