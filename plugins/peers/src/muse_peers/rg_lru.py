"""The recurrent block of Griffin: a gated short convolution with a gated diagonal recurrence behind it, or without.

Shapes: B batch, N tokens, D width, R inner width, H blocks of the gates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import PlainConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import projection
from muse_peers.initial import inverse_softplus
from muse_peers.options import RgLruOptions
from muse_peers.scan import recurrence

SHARPNESS = 8.0
"""c of the paper: the exponent that a recurrence gate of 1 stands for."""


class BlockGates(nn.Module):
    """σ(W u + b) for the recurrence and the input, W of H blocks each, in fp32 at least."""

    def __init__(self, inner: int, heads: int, generator: torch.Generator):
        super().__init__()
        size = inner // heads
        self.maps = nn.ParameterList(
            torch.empty(heads, size, size).normal_(std=size**-0.5, generator=generator) for _ in range(2)
        )
        self.biases = nn.ParameterList(torch.zeros(inner) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, R) → two gates in (0, 1), each (B, N, R)."""
        blocks = x.unflatten(-1, (self.maps[0].shape[0], -1))
        recurrent, entering = (
            torch.sigmoid(torch.einsum("bnhi,hij->bnhj", blocks, weight).flatten(2) + bias)
            for weight, bias in zip(self.maps, self.biases, strict=True)
        )
        return recurrent, entering


class RgLru(nn.Module):
    """update_t = P (GeLU(G x_t) ⊙ h_t), h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ i_t ⊙ u_t, u the short convolution of U x,
    a_t = exp(−8 softplus(Λ) ⊙ r_t), r and i gates of u. Without the recurrence h_t is u_t.

    The first token of a document enters with weight 1, as it has nothing to be weighed against. State: ``inputs``
    (B, span − 1, R) of the convolution and, with the recurrence, ``hidden`` (B, R). Source: De and others,
    arXiv:2402.19427.
    """

    def __init__(self, options: RgLruOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        inner = options.inner(width)
        self.gate = projection(width, inner, generator)
        self.input = projection(width, inner, generator)
        self.convolution = PlainConvolution(
            inner, options.convolution, generator, context.kernels.bind, "uniform", bias=True
        )
        self.gates, self.forgetting = None, None
        if options.recurrence:
            self.gates = BlockGates(inner, options.heads, generator)
            # exp(−8 softplus(Λ)), the factor where the gate is 1, starts even between 0.9 and 0.999.
            slowest = torch.rand(inner, generator=generator, dtype=torch.float64).mul(0.099).add(0.9)
            first = inverse_softplus(-slowest.log() / SHARPNESS)
            self.forgetting = nn.Parameter(first.to(torch.get_default_dtype()))
        # As many updates as there are blocks add up in the stream.
        self.output = projection(inner, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        low = lowered(x)
        mixed, kept = self.convolution(self.input(low), None if state is None else state["inputs"], tokens)
        after: dict[str, Tensor] = {"inputs": kept}
        if self.gates is not None:
            hidden = self._recurrent(mixed, None if state is None else state["hidden"], tokens)
            after["hidden"] = hidden[:, -1].clone()
            mixed = hidden.to(mixed.dtype)
        return LayerOutput(self.output(F.gelu(self.gate(low)) * mixed), after)

    def _recurrent(self, u: Tensor, before: Tensor | None, tokens: Tokens) -> Tensor:
        """u (B, N, R) → h (B, N, R), in fp32 at least; after the last valid token it stays as it is."""
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(torch.promote_types(u.dtype, torch.float32))
            recurrent, entering = self.gates(u)
            log_factor = -SHARPNESS * F.softplus(self.forgetting) * recurrent
            first = tokens.positions == 0
            if tokens.resets is not None:
                first = first | tokens.resets
            first = first[..., None]
            # The clamp keeps the root's derivative finite where a gate closes.
            weight = torch.where(first, 1.0, (-torch.expm1(2 * log_factor)).clamp(min=1e-12).sqrt())
            factor, term = log_factor.exp().masked_fill(first, 0.0), weight * entering * u
            if tokens.valid is not None:
                valid = tokens.valid[..., None]
                factor, term = torch.where(valid, factor, 1.0), torch.where(valid, term, 0.0)
            return recurrence(factor, term, before)
