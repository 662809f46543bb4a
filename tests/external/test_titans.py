"""titans-pytorch's neural memory under the layer suite."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing import ExternalLayerSuite

titans = pytest.importorskip("titans_pytorch")

INSIDE = "0.5.5 continues inside a chunk by one token only: several are wrong, or raise"


class TestNeuralMemory(ExternalLayerSuite):
    """``NeuralMemory`` with chunks of 4. It reads completed chunks and documents no form for several documents in a
    row."""

    supports: ClassVar[frozenset[str]] = frozenset({"state", "gradients of state"})
    expected_failures: ClassVar[dict[str, str]] = {
        "test_gradients_reach_every_parameter": "the memory model's own parameters are copied a head and stay unused",
        "test_pieces_give_what_the_whole_gives[one document]": INSIDE,
        "test_gradients_through_pieces_are_those_of_the_whole[one document]": INSIDE,
        "test_pieces_of_a_long_row_give_what_the_whole_gives[one document]": INSIDE,
        "test_gradients_through_pieces_of_a_long_row_are_those_of_the_whole[one document]": INSIDE,
        "test_a_change_of_all_that_follows_reaches_no_earlier_token[eval, carried state]": INSIDE,
        "test_state_survives_being_stored": INSIDE,
    }

    def make(self) -> nn.Module:
        return titans.NeuralMemory(dim=self.width, chunk_size=4, heads=2, dim_head=8)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        y, after = layer(x, state=None if state is None else self.loaded(layer, state))
        return y, stored(after)

    def loaded(self, layer: nn.Module, state: Any) -> Any:
        from tensordict import TensorDict
        from titans_pytorch.neural_memory import NeuralMemState

        def weights(name: str) -> Any:
            return TensorDict(state[name]) if name in state else None

        past = (weights("update"), weights("momentum")) if "update" in state else None
        return NeuralMemState(int(state["index"]), weights("weights"), state.get("rest"), past, weights("updates"))


def stored(after: Any) -> dict[str, Any]:
    """Its named tuple as a tree of dicts of tensors."""
    found: dict[str, Any] = {"index": torch.tensor(after.seq_index)}
    past = after.states or (None, None)
    for name, value in [("weights", after.weights), ("update", past[0]), ("momentum", past[1]),
                        ("updates", after.updates)]:
        if value is not None:
            found[name] = {key: value[key] for key in value.keys()}
    if after.cache_store_segment is not None:
        found["rest"] = after.cache_store_segment
    return found
