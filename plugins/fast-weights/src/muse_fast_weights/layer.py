"""The hebbian memory layer.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.component import named
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.fast_weights.by_period import by_period
from muse_core.fast_weights.periods import Writes
from muse_core.model.context import Context
from muse_core.model.precision import lowered
from muse_fast_weights.convolution import CausalConvolution
from muse_fast_weights.dynamics import Dynamics, regrouped
from muse_fast_weights.options import FastWeightsOptions
from muse_fast_weights.rotation import Rotation
from muse_kernels import unit_length


class FastWeights(nn.Module):
    """update_t = P (gate(x_t) ⊙ norm(W_tᵀ q_t)), with W written by the Hebbian or the delta rule.

    Queries and keys have length 1, so β‖k‖² ≤ 1. State: ``memory`` (``muse_core.fast_weights.by_period.Reading``) and,
    with a convolution, ``convolution`` (B, span − 1, H (2K + M)). Signals ``memory_before`` (B, N, H, M): W_{t−1}ᵀ q_t;
    ``gate`` (B, N, H M): σ of the gate's pre-activation.
    Measures: ``energy`` (mean ‖W‖² of a head after the last token), ``decay`` and its ``decay_min``, ``decay_max`` (Γ
    per token), ``rate`` (mean β), and the filters'. Source: mathematics §3.
    """

    def __init__(self, options: FastWeightsOptions, context: Context):
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
        self.convolution = None
        if options.convolution:
            short = context.kernels.bind(
                "short_convolution",
                sizes={"key": self.key_width, "span": options.convolution},
                needs=("gradient", "resets"),
            )
            self.convolution = CausalConvolution(channels, options.convolution, generator, short, options.taps)
        self.dynamics = Dynamics(
            width,
            self.heads,
            generator,
            initial_decay=options.initial_decay,
            base_decay=options.base_decay,
            initial_rate=options.initial_rate,
            replaced=self.key_width if options.rule == "delta" else None,
            own_decay=not self.use_signal,
            amplified=options.decay_form == "product",
            most_rate=options.most_rate,
        )
        self.rotation = None
        if options.rotation != "none":
            self.rotation = Rotation(self.heads, self.key_width, by_position=options.rotation == "positions")
            if options.rotation == "spectral-shift":
                regrouped(torch.empty(context.signals["spectral_shift"]), self.heads, "spectral_shift")
        self.norm = nn.RMSNorm(self.value_width, eps=1e-6) if options.output_norm else None
        self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": self.value_width})
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

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        new_state = {}
        low = lowered(x)
        projected = F.linear(low, torch.cat((self.query.weight, self.key.weight, self.value.weight)))
        if self.convolution is not None:
            (query, key, value), new_state["convolution"] = self.convolution(
                projected, self.heads, self.key_width, state.get("convolution"), tokens
            )
        else:
            sizes = (self.heads * self.key_width, self.heads * self.key_width, self.heads * self.value_width)
            query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in projected.split(sizes, dim=-1))
            query, key = unit_length(query), unit_length(key)
        if self.rotation is not None:
            query, key = self.rotation(query, key, signals, tokens)
        log_decay, rate = self.dynamics(x, signals["decay"] if self.use_signal else None)
        reading = by_period(
            self.kernel,
            list(self.filters.items()),
            Writes(query, key, value, log_decay, rate),
            state.get("memory"),
            tokens,
            rule=self.rule,
            period=self.period,
            read_before="memory_before" in self.publish,
        )
        new_state["memory"] = reading.state
        published = {} if reading.before is None else {"memory_before": reading.before}
        gate = None if self.gate is None else self.gate(low)
        if "gate" in self.publish:
            published["gate"] = gate.sigmoid()
        read = self.gated_norm(
            reading.output,
            None if self.norm is None else self.norm.weight,
            None if gate is None else gate.view(reading.output.shape),
        )
        return LayerOutput(
            self.output(read.flatten(2).to(projected.dtype)),
            new_state,
            published,
            {},
            {**_measures(reading.state["weights"], -log_decay, rate, tokens.valid), **reading.metrics},
        )


def _projection(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=gain * inputs**-0.5, generator=generator)
    return linear


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
