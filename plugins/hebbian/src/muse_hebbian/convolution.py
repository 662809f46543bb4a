"""A short causal convolution, channel by channel, that never reaches into the previous document.

Shapes: B batch, N tokens, C channels, S span of the convolution in tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens


class CausalConvolution(nn.Module):
    """y_t = Σ_{lag < S} tap_lag ⊙ x_{t−lag}, over tokens of the same document.

    The state is the last S − 1 inputs (B, S − 1, C), zeroed before the latest document start. Taps are one vector per
    lag, so that optimisers treat them as the per-channel gains they are and not as a matrix.
    """

    def __init__(self, channels: int, span: int, generator: torch.Generator):
        super().__init__()
        self.span = span
        # The present token passes unchanged and the earlier ones start small but alive.
        self.taps = nn.ParameterList(
            torch.empty(channels).normal_(mean=float(lag == 0), std=0.1, generator=generator) for lag in range(span)
        )

    def forward(self, x: Tensor, state: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """x (B, N, C) → the same shape and dtype, and the state for what follows, at least fp32."""
        batch, length, channels = x.shape
        memory = self.span - 1
        if state is None:
            state = x.new_zeros(batch, memory, channels)
        padded = torch.cat((state.to(x.dtype), x), dim=1)
        document = _documents(tokens, memory)
        output = x * self.taps[0].to(x.dtype)
        for lag in range(1, self.span):
            earlier = padded[:, memory - lag : memory - lag + length]
            if document is not None:
                other = document[:, memory:] != document[:, memory - lag : memory - lag + length]
                earlier = earlier.masked_fill(other[..., None], 0.0)
            output = torch.addcmul(output, earlier, self.taps[lag].to(x.dtype))
        return output, _last(padded, document, tokens.valid, memory)


def _documents(tokens: Tokens, memory: int) -> Tensor | None:
    """(B, S − 1 + N): which document an input belongs to, counted from the carried ones' (0)."""
    if tokens.resets is None:
        return None
    resets = tokens.resets if tokens.valid is None else tokens.resets & tokens.valid
    return nn.functional.pad(resets.cumsum(1), (memory, 0))


def _last(padded: Tensor, document: Tensor | None, valid: Tensor | None, memory: int) -> Tensor:
    """The last S − 1 inputs up to each row's last valid token, zeroed before its latest document."""
    if valid is None:
        kept = padded[:, padded.shape[1] - memory :]
        document = None if document is None else document[:, document.shape[1] - memory :]
    else:
        index = valid.sum(1, keepdim=True) + torch.arange(memory, device=padded.device)
        kept = padded.gather(1, index[..., None].expand(-1, -1, padded.shape[-1]))
        document = None if document is None else document.gather(1, index)
    if document is not None:
        other = document != document[:, -1:]
        kept = kept.masked_fill(other[..., None], 0.0)
    return kept.to(torch.promote_types(kept.dtype, torch.float32))
