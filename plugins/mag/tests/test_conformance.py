"""The layers at odd sizes and with short windows and shards; tests/ does the same for their defaults."""

from muse_core.testing.layers import LayerSuite, MemoryLayerSuite


class TestSlidingWindowOfFive(LayerSuite):
    name = "sliding-window"
    options = {"heads": 4, "key_value_heads": 2, "window": 5, "persistent": 3, "convolution": 3}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestShortShards(MemoryLayerSuite):
    name = "qk-projection"
    options = {"heads": 2, "shard": 6, "persistent": 3}
    test_compiles = None


class TestMagOfShortShards(LayerSuite):
    name = "mag"
    options = {"heads": 2, "window": 4, "persistent": 3, "memory": {"use": "qk-projection", "heads": 2, "shard": 6}}
    test_compiles = None


class TestMagThatBlendsQueries(LayerSuite):
    name = "mag"
    options = {"heads": 2, "window": 4, "mixing": "query-blend", "memory": {"use": "qk-projection", "shard": 6}}
    test_compiles = None


class TestMagThatAdds(LayerSuite):
    name = "mag"
    options = {
        "heads": 2,
        "window": 4,
        "mixing": "additive",
        "memory": {"use": "fast-weights", "heads": 2, "period": 6, "filters": ["snr"]},
    }
    test_compiles = None
