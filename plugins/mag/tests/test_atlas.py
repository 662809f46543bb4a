"""The deep memory keeps the contract of memory layers in its variants; tests/ does the same for its defaults."""


import pytest
import torch
from muse_mag.atlas import Monomials
from muse_mag.atlas_options import AtlasOptions

from muse_core.testing.layers import MemoryLayerSuite


class TestAtlasInSmallChunks(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 4, "window": 3, "key_size": 5, "hidden_size": 6}
    test_compiles = None  # the defaults compile; a variant costs seconds more


class TestAtlasByTheRuleOfTitans(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 2, "orthogonalise": False, "convolution": 0, "gate": False, "recompute": 2}
    test_compiles = None


class TestAtlasOfTwoLevels(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 2, "levels": 2, "global_chunk": 8, "shard": 6, "key_size": 3, "degree": 2}
    test_compiles = None


class TestLinearAtlas(MemoryLayerSuite):
    name = "atlas"
    options = {"heads": 2, "chunk": 4, "memory": "linear", "momentum": False, "orthogonalise": False}
    test_compiles = None


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_features_multiply_as_polynomials(degree: int):
    features = Monomials(4, degree)
    query, key = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = (query * key).sum()
    expected = sum(product**d for d in range(1, degree + 1)) / degree
    assert abs((features(query) * features(key)).sum() - expected) <= 1e-12
    assert features(query).shape[-1] == AtlasOptions(key_size=4, degree=degree).key_width(16)
