"""local-attention's window attention under the layer suite."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing import ExternalLayerSuite

local_attention = pytest.importorskip("local_attention")

ROTATED = "1.11.2 caches keys that are rotated already and rotates them again: wrong from the third token on"


class TestLocalMHA(ExternalLayerSuite):
    """``LocalMHA``, causal, window 8; its cache takes one token a call."""

    supports: ClassVar[frozenset[str]] = frozenset({"state", "gradients of state", "autocast"})
    expected_failures: ClassVar[dict[str, str]] = {
        "test_pieces_give_what_the_whole_gives[one document]": ROTATED,
        "test_gradients_through_pieces_are_those_of_the_whole[one document]": ROTATED,
        "test_pieces_of_a_long_row_give_what_the_whole_gives[one document]": ROTATED,
        "test_gradients_through_pieces_of_a_long_row_are_those_of_the_whole[one document]": ROTATED,
    }

    def make(self) -> nn.Module:
        return local_attention.LocalMHA(dim=self.width, window_size=8, dim_head=8, heads=2, causal=True)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        if state is None:
            y, cache = layer(x, return_cache=True)
            return y, {"keys": cache[0], "values": cache[1]}
        outputs = []
        for token in range(x.shape[1]):
            y, cache = layer(x[:, token : token + 1], cache=(state["keys"], state["values"]), return_cache=True)
            state = {"keys": cache[0], "values": cache[1]}
            outputs.append(y)
        return torch.cat(outputs, dim=1), state


class TestLocalMHAWithoutRotary(TestLocalMHA):
    """The same without rotary positions, with nothing expected to fail."""

    expected_failures: ClassVar[dict[str, str]] = {}

    def make(self) -> nn.Module:
        return local_attention.LocalMHA(
            dim=self.width, window_size=8, dim_head=8, heads=2, causal=True, use_rotary_pos_emb=False
        )
