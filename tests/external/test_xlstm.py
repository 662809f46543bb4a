"""xlstm's matrix memory under the layer suite, on its kernels in plain torch."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing.external import ExternalLayerSuite, tree_of, tuple_of

pytest.importorskip("mlstm_kernels")
large = pytest.importorskip("xlstm.xlstm_large.model")


class TestMLSTMLayer(ExternalLayerSuite):
    """``mLSTMLayer`` of xLSTM 7B in its mode for inference, which takes any length and a state."""

    supports: ClassVar[frozenset[str]] = frozenset({"state", "gradients of state", "autocast"})
    precision = torch.float32

    def make(self) -> nn.Module:
        backend = large.mLSTMBackendConfig(mode="inference", chunk_size=16, return_last_states=True)
        return large.mLSTMLayer(large.mLSTMLayerConfig(embedding_dim=self.width, num_heads=2, mlstm_backend=backend))

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        y, after = layer(x, None if state is None else tuple_of(state, 3))
        return y, tree_of(after)
