"""Memory as gate: window attention passed on as far as a memory's answer lets it (Behrouz et al., arXiv:2501.00663).

Letters: B batch rows, N tokens, D width, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.attention import normalised
from muse_core.model.context import Context
from muse_core.model.projections import projection
from muse_mag.options import MagOptions
from muse_mag.window import WindowAttention


class Gate(nn.Module):
    """z = gain ⊙ norm(memory) + bias: pre-activations of a gate that is half open on average at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, memory: Tensor) -> Tensor:
        """memory (B, N, D) → z (B, N, D)."""
        return normalised(self.norm, memory) + self.bias.to(memory.dtype)


class Mag(nn.Module):
    """update_t = P (norm(a_t) ⊙ σ(z_t)), a what the window's heads read and z the memory's answer, normalised.

    additive: P (norm(a_t) + norm(m_t)). query-blend: P norm(a_t) where queries of the attention are
    (1 − g_t) q_t + g_t norm(m_t), g_t = σ(G x_t) per head, before they are rotated. State: ``attention`` of
    ``WindowAttention`` and ``memory`` of the memory. Signal ``gate``: σ(z) (B, N, D), or g (B, N, H). Metrics:
    ``gate_mean``, and ``gate_deviation`` and ``gate_variance`` over tokens and features; the memory's under
    ``memory/``. Source: mathematics §9.
    """

    def __init__(self, options: MagOptions, context: Context):
        super().__init__()
        self.mixing, self.publish = options.mixing, context.publish
        self.attention = WindowAttention(options, context)
        width = context.width
        self.memory = context.build(options.memory, name=f"{context.name}.memory", publish=frozenset())
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate = self.memory_norm = None
        if options.mixing == "gate":
            self.gate = Gate(width)
        elif options.mixing == "additive":
            self.memory_norm = nn.RMSNorm(width, eps=1e-6)
        else:
            self.memory_norm = nn.RMSNorm(self.attention.size, eps=1e-6)
            self.gate = nn.Linear(width, self.attention.heads)
            nn.init.normal_(self.gate.weight, std=0.5 * width**-0.5, generator=context.generator)
            nn.init.zeros_(self.gate.bias)
        self.output = projection(width, width, context.generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {"attention": None, "memory": None} if state is None else state
        answer = self.memory(x, state["memory"], signals, tokens)
        memory, openness, blend = answer.update, None, None
        if self.mixing == "gate":
            openness = torch.sigmoid(self.gate(memory))
        elif self.mixing == "query-blend":
            openness = torch.sigmoid(self.gate(x))
            blend = self.blending(memory, openness)
        attended, kept = self.attention(x, state["attention"], tokens, blend)
        mixed = normalised(self.attention_norm, attended.flatten(-2))
        if self.mixing == "gate":
            mixed = mixed * openness.to(mixed.dtype)
        elif self.mixing == "additive":
            mixed = mixed + normalised(self.memory_norm, memory).to(mixed.dtype)
        metrics = {f"memory/{name}": value for name, value in answer.metrics.items()}
        if openness is not None:
            metrics |= measures(openness, tokens.valid)
        return LayerOutput(
            self.output(mixed),
            {"attention": kept, "memory": answer.state},
            {"gate": openness} if "gate" in self.publish else {},
            {f"memory_{name}": value for name, value in answer.losses.items()},
            metrics,
        )

    def blending(self, memory: Tensor, openness: Tensor) -> Callable[[Tensor], Tensor]:
        """What changes queries (B, N, H, K) by the memory's answer (B, N, D)."""
        other = normalised(self.memory_norm, memory.unflatten(-1, (self.attention.heads, -1)))
        share = openness[..., None]

        def blend(query: Tensor) -> Tensor:
            return ((1 - share) * query + share * other).to(query.dtype)

        return blend


@torch.no_grad()
def measures(openness: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """``gate_mean`` of ``openness`` (B, N, D), and its ``gate_variance`` and ``gate_deviation``, over features and
    valid tokens, ``valid`` (B, N) bool or None for all."""
    openness = openness.detach().to(torch.promote_types(openness.dtype, torch.float32))
    count = torch.ones_like(openness[..., :1]) if valid is None else valid[..., None].to(openness.dtype)
    count = (count / count.sum().clamp_min(1.0)).expand_as(openness) / openness.shape[-1]
    mean = (openness * count).sum()
    variance = ((openness - mean).square() * count).sum()
    return {"gate_mean": mean, "gate_variance": variance, "gate_deviation": variance.sqrt()}
