"""The layer keeps the contract of layers at combinations of options too; tests/ does the same for single ones."""

from muse_core.testing.layers import LayerSuite


class TestTraceAttentionOfCombinedOptions(LayerSuite):
    name = "trace-attention"
    options = {
        "heads": 4, "key_value_heads": 2, "window": 6, "bound": "theory", "factor": 0.2, "knee": 0.0,
        "query_key_norm": True,
    }  # fmt: skip
    test_compiles = None  # single options compile; a variant costs seconds more
