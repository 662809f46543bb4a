"""Recurrent layers of transformers under the layer suite, on its forms in plain torch."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.testing import ExternalLayerSuite

pytest.importorskip("transformers")

ZERO = "5.23.0 starts several tokens from a zero state; findings/transformers-mamba-cached-pieces.sh"


class CachedLayer(ExternalLayerSuite):
    """A mixer whose call takes ``cache_params``; its state is what stands in the cache's layer."""

    supports: ClassVar[frozenset[str]] = frozenset({"state", "autocast"})
    precision = torch.float32

    def config(self) -> Any:
        raise NotImplementedError

    def step(self, layer: nn.Module, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, State]:
        from transformers.cache_utils import DynamicCache

        config = self.config()
        cache = DynamicCache(config=config)
        if state is not None:
            cache.update_conv_state(state["convolution"].clone(), 0, conv_kernel_size=self.taps)
            if "recurrent" in state:
                cache.update_recurrent_state(state["recurrent"].clone(), 0)
        y = layer(x, cache_params=cache)
        own = cache.layers[0]
        found = {"convolution": own.conv_states[0], "recurrent": own.recurrent_states[0]}
        return y, {name: value.float() for name, value in found.items() if value is not None}

    taps = 4


class TestMamba2Mixer(CachedLayer):
    def config(self) -> Any:
        from transformers import Mamba2Config

        return Mamba2Config(hidden_size=16, num_heads=4, head_dim=8, state_size=8, n_groups=1, expand=2, chunk_size=8,
                            num_hidden_layers=1, conv_kernel=4)

    def make(self) -> nn.Module:
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        return Mamba2Mixer(self.config(), layer_idx=0)


class TestMambaMixer(CachedLayer):
    expected_failures: ClassVar[dict[str, str]] = {
        f"test_pieces_give_what_the_whole_gives[{pieces}-one document]": ZERO
        for pieces in ("uneven", "two", "periods")
    } | {"test_pieces_of_a_long_row_give_what_the_whole_gives[one document]": ZERO}

    def config(self) -> Any:
        from transformers import MambaConfig

        return MambaConfig(hidden_size=16, state_size=8, expand=2, num_hidden_layers=1, conv_kernel=4)

    def make(self) -> nn.Module:
        from transformers.models.mamba.modeling_mamba import MambaMixer

        return MambaMixer(self.config(), layer_idx=0)


class TestQwen3NextGatedDeltaNet(CachedLayer):
    def config(self) -> Any:
        from transformers import Qwen3NextConfig

        return Qwen3NextConfig(
            hidden_size=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, linear_conv_kernel_dim=4, num_hidden_layers=1, layer_types=["linear_attention"],
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=32, num_experts=2,
        )

    def make(self) -> nn.Module:
        from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

        return Qwen3NextGatedDeltaNet(self.config(), layer_idx=0)


class TestOlmoHybridGatedDeltaNet(CachedLayer):
    def config(self) -> Any:
        from transformers import OlmoHybridConfig

        return OlmoHybridConfig(
            hidden_size=16, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, linear_conv_kernel_dim=4, num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            num_attention_heads=2, num_key_value_heads=1, vocab_size=32,
        )

    def make(self) -> nn.Module:
        from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

        return OlmoHybridGatedDeltaNet(self.config(), layer_idx=0)


class TestKimiLinearDeltaAttention(CachedLayer):
    def config(self) -> Any:
        from transformers import KimiLinearConfig

        return KimiLinearConfig(hidden_size=16, num_hidden_layers=1, layer_types=["linear_attention"], vocab_size=32,
                                num_attention_heads=2)

    def make(self) -> nn.Module:
        from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

        layer = KimiLinearDeltaAttention(self.config(), layer_idx=0)
        for parameter in layer.parameters():  # some are empty until a whole model initialises them
            nn.init.normal_(parameter, std=0.2)
        return layer
