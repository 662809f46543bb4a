"""The hebbian memory layer.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.component import named
from muse_core.contracts import State, Step, Tokens
from muse_core.model.by_period import by_period
from muse_core.model.context import Context
from muse_core.model.periods import Writes
from muse_hebbian.convolution import CausalConvolution
from muse_hebbian.dynamics import Dynamics, regrouped
from muse_hebbian.options import HebbianOptions


class Hebbian(nn.Module):
    """update_t = P (gate(x_t) ⊙ norm(W_tᵀ q_t)), with W written by the Hebbian or the delta rule.

    Queries and keys have length 1, so β‖k‖² ≤ 1. State: ``memory`` (see ``muse_core.model.by_period.Reading``) and,
    with a convolution, ``convolution`` (B, span − 1, H (2K + M)). Signals ``memory_before`` (B, N, H, M): W_{t−1}ᵀ q_t;
    ``gate`` (B, N, H M): σ of the gate's pre-activation.
    Measures: ``energy`` (mean ‖W‖² of a head after the last token), ``decay`` and its ``decay_min``, ``decay_max`` (Γ
    per token), ``rate`` (mean β), and the filters'. Source: mathematics §3.
    """

    def __init__(self, options: HebbianOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.heads = options.heads
        self.key_width = options.key_width(width)
        self.value_width = options.value_width(width)
        self.period = options.period
        self.publish = context.publish
        self.use_signal = options.decay == "signal"
        if self.use_signal:
            regrouped(torch.empty(context.signals["decay"]), self.heads)
        self.rule = options.rule
        # Between filters the weights' own transition, K x K, goes through the kernel as values do.
        widest = max(self.key_width, self.value_width) if options.filters else self.value_width
        self.kernel = context.kernels.bind(
            "fast_weights", sizes={"key": self.key_width, "value": widest}, needs=("gradient", "resets")
        )
        self.query = _projection(width, self.heads * self.key_width, generator)
        self.key = _projection(width, self.heads * self.key_width, generator)
        self.value = _projection(width, self.heads * self.value_width, generator)
        channels = self.heads * (2 * self.key_width + self.value_width)
        self.convolution = (
            CausalConvolution(channels, options.convolution, generator) if options.convolution else None
        )
        self.dynamics = Dynamics(
            width,
            self.heads,
            generator,
            initial_decay=options.initial_decay,
            base_decay=options.base_decay,
            initial_rate=options.initial_rate,
            replaced=self.key_width if options.rule == "delta" else None,
            own_decay=not self.use_signal,
        )
        self.norm = nn.RMSNorm(self.value_width, eps=1e-6) if options.output_norm else None
        self.gate = _projection(width, self.heads * self.value_width, generator) if options.gate else None
        # As many updates as there are blocks add up in the stream.
        self.output = _projection(self.heads * self.value_width, width, generator, gain=(2 * context.depth) ** -0.5)
        self.filters = nn.ModuleDict(
            {
                name: context.build(
                    use,
                    name=f"{context.name}.filters.{name}",
                    heads=self.heads,
                    period=self.period,
                    key_width=self.key_width,
                )
                for name, use in named(options.filters).items()
            }
        )

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> Step:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        new_state = {}
        projected = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        if self.convolution is not None:
            projected, new_state["convolution"] = self.convolution(projected, state.get("convolution"), tokens)
            projected = F.silu(projected)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1))
            for part in projected.split(
                (self.heads * self.key_width, self.heads * self.key_width, self.heads * self.value_width), dim=-1
            )
        )
        log_decay, rate = self.dynamics(x, signals["decay"] if self.use_signal else None)
        reading = by_period(
            self.kernel,
            list(self.filters.items()),
            Writes(_unit(query), _unit(key), value, log_decay, rate),
            state.get("memory"),
            tokens,
            rule=self.rule,
            period=self.period,
            read_before="memory_before" in self.publish,
        )
        new_state["memory"] = reading.state
        read = reading.output
        if self.norm is not None:
            read = self.norm(read.to(torch.promote_types(read.dtype, torch.float32)))
        read = read.flatten(2)
        published = {} if reading.before is None else {"memory_before": reading.before}
        if self.gate is not None:
            gate = self.gate(x)
            read = read * F.silu(gate)
            if "gate" in self.publish:
                published["gate"] = gate.sigmoid()
        return Step(
            self.output(read.to(projected.dtype)),
            new_state,
            published,
            {},
            _measures(reading.state["weights"], -log_decay, rate, tokens.valid) | reading.measures,
        )


def _projection(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=gain * inputs**-0.5, generator=generator)
    return linear


def _unit(x: Tensor) -> Tensor:
    """x over its length, computed in fp32 at least: a square overflows in fp16 and loses bits in bf16."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-6).to(x.dtype)


@torch.no_grad()
def _measures(weights: Tensor, decay: Tensor, rate: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    share = torch.ones_like(decay[..., :1]) if valid is None else valid[..., None].to(decay.dtype)
    share = (share / share.sum().clamp_min(1.0)).expand_as(decay) / decay.shape[-1]
    return {
        "energy": weights.square().sum((-1, -2)).mean(),
        "decay": (decay * share).sum(),
        "decay_min": decay.amin(),
        "decay_max": decay.amax(),
        "rate": (rate * share).sum(),
    }
