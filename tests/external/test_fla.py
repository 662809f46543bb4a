"""Layers of flash-linear-attention under the layer suite; its kernels run on a GPU only, in one process.

``TRITON_F32_DEFAULT=ieee`` keeps tf32 out of its products, so that differences are the layer's and not the format's. Of
the configurations that a kernel may take the first is compiled and the others are not tried: they differ in time and
not in what is computed, and trying them all takes minutes a layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing import ExternalLayerSuite

autotuner = pytest.importorskip("triton.runtime.autotuner")


def with_the_first_configuration() -> None:
    """Has to be called before fla is imported, which builds its tuners then."""
    build = autotuner.Autotuner.__init__

    def built(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        build(self, fn, arg_names, configs[:1], *rest, **named)

    autotuner.Autotuner.__init__ = built


if torch.cuda.is_available():
    with_the_first_configuration()
layers = pytest.importorskip("fla.layers")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels run on a GPU only")


class Packed(NamedTuple):
    """Rows and their documents as the library wants them: one row of everything with the places where each starts."""

    starts: Tensor
    """(S + 1,) int: cumulative lengths."""
    first: Tensor
    """(B,) int: number of the first piece of each row."""
    last: Tensor
    """(B,) int: number of the last one."""

    @classmethod
    def of(cls, tokens: Tokens, resets: Tensor) -> Packed:
        batch, length = tokens.positions.shape
        begins = resets.clone()
        begins[:, 0] = True
        ends = torch.tensor([batch * length], device=resets.device)
        pieces = begins.flatten().cumsum(0).view(batch, length) - 1
        return cls(torch.cat([begins.flatten().nonzero().flatten(), ends]), pieces[:, 0], pieces[:, -1])


class FlaLayer(ExternalLayerSuite):
    """A layer whose call takes ``past_key_values`` and ``cu_seqlens``."""

    device = "cuda"
    width = 64
    length = 21
    precision = torch.float32
    supports: ClassVar[frozenset[str]] = frozenset({"state", "documents", "padding"})
    sizes: ClassVar[dict[str, Any]] = {"hidden_size": 64, "num_heads": 2, "head_dim": 32}
    layer: ClassVar[str]

    def make(self) -> nn.Module:
        return getattr(layers, self.layer)(**self.sizes, layer_idx=0)

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        from fla.models.utils import Cache

        packed = None if tokens.resets is None else Packed.of(tokens, tokens.resets)
        given = state if packed is None or state is None else spread(state, packed, tokens.resets)
        cache = Cache()
        if given is not None:
            convolution = given.get("convolution")
            cache.update(
                recurrent_state=given["recurrent"].clone(),
                conv_state=convolution and tuple(part.to(x.dtype, copy=True) for part in parts(convolution)),
                layer_idx=0, offset=int(tokens.positions[0, 0]),
            )
        extra: dict[str, Any] = {}
        if tokens.valid is not None:
            extra["attention_mask"] = tokens.valid.long()
        if packed is not None:
            extra["cu_seqlens"] = packed.starts
            y = layer(x.reshape(1, -1, x.shape[-1]), past_key_values=cache, use_cache=True, **extra)[0].view_as(x)
        else:
            y = layer(x, past_key_values=cache, use_cache=True, **extra)[0]
        found = cache[0]
        after: dict[str, Any] = {"recurrent": found["recurrent_state"]}
        if found.get("conv_state") is not None:
            pieces = found["conv_state"]
            pieces = pieces if isinstance(pieces, (tuple, list)) else (pieces,)
            after["convolution"] = {str(index): part.float() for index, part in enumerate(pieces)}
        if packed is not None:
            after = {name: chosen(value, packed.last) for name, value in after.items()}
        return y, after


def parts(tree: dict[str, Tensor]) -> list[Tensor]:
    return [tree[str(index)] for index in range(len(tree))]


def chosen(value: Any, rows: Tensor) -> Any:
    return {key: part[rows] for key, part in value.items()} if isinstance(value, dict) else value[rows]


def spread(state: Any, packed: Packed, resets: Tensor) -> Any:
    """The state of each row for the first of its pieces, zeros for documents that start inside."""
    count = len(packed.starts) - 1

    def placed(value: Tensor) -> Tensor:
        whole = value.new_zeros(count, *value.shape[1:])
        whole[packed.first] = torch.where(resets[:, 0].view(-1, *[1] * (value.dim() - 1)), 0, value)
        return whole

    return {
        name: {key: placed(part) for key, part in value.items()} if isinstance(value, dict) else placed(value)
        for name, value in state.items()
    }


class TestGatedDeltaNet(FlaLayer):
    layer = "GatedDeltaNet"


class TestKimiDeltaAttention(FlaLayer):
    layer = "KimiDeltaAttention"


class TestGatedLinearAttention(FlaLayer):
    layer = "GatedLinearAttention"
    sizes: ClassVar[dict[str, Any]] = {"hidden_size": 64, "num_heads": 2}


class TestGatedLinearAttentionInChunks(TestGatedLinearAttention):
    """Rows of more than 64 tokens are computed by other kernels than shorter ones."""

    length = 70


class TestDeltaNet(FlaLayer):
    layer = "DeltaNet"
    sizes: ClassVar[dict[str, Any]] = {"hidden_size": 64, "num_heads": 2}


class TestDeltaNetInChunks(TestDeltaNet):
    """In bfloat16, the only precision that its chunks take."""

    length = 70
    precision = torch.bfloat16


class TestMultiScaleRetention(FlaLayer):
    """Its keys are rotated by the count of tokens that the cache has seen, one count for all rows: rows whose documents
    started at different places, or that end at different ones, it cannot continue."""

    layer = "MultiScaleRetention"
    sizes: ClassVar[dict[str, Any]] = {"hidden_size": 64, "num_heads": 2}
    supports: ClassVar[frozenset[str]] = frozenset({"state"})


class TestHGRN2Attention(FlaLayer):
    layer = "HGRN2Attention"
    sizes: ClassVar[dict[str, Any]] = {"hidden_size": 64, "expand_ratio": 32}


class TestGatedDeltaProduct(FlaLayer):
    layer = "GatedDeltaProduct"


class TestGatedDeltaProductInBfloat16(TestGatedDeltaProduct):
    """The only precision in which it trains."""

    precision = torch.bfloat16
