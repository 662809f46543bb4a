"""The memory layer: fast weights, how fast a head forgets and how strongly it writes, and the rotation of its keys.

Shapes: B batch, N tokens, D width, H heads, K key width, M value width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.component import named
from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.fast_weights import Writes, by_period
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection, widened
from muse_core.model.signals import regrouped
from muse_fast_weights.options import FastWeightsOptions
from muse_fast_weights.resolvent import ResolventMixing
from muse_fast_weights.rotation import Rotation
from muse_fast_weights.second_write import SecondWrite, interleaved
from muse_kernels import unit_length

WEIGHT_STD = 0.5
"""Standard deviation of a weight's share of the pre-activation at the start, for inputs of unit mean square."""


class FastWeights(nn.Module):
    """update_t = P (gate(x_t) ⊙ norm(W_tᵀ q_t)), with W written by the Hebbian or the delta rule.

    Queries and keys have length 1, so β‖k‖² ≤ 1. State: ``memory`` (``muse_core.fast_weights.Reading``), with a
    convolution ``convolution`` (B, span − 1, H (2K + M)), with a resolvent in its place ``resolvent``
    (``ResolventMixing``), with rotation by a potential ``angle`` (B, H, K // 2), with two writes a token ``second``,
    the second's convolution.
    Signals ``memory_before`` (B, N, H, M): W_{t−1}ᵀ q_t; ``gate`` (B, N, H M): σ of the gate's pre-activation.
    Metrics: ``energy`` (mean ‖W‖² of a head after the last token), ``decay`` and its ``decay_min``, ``decay_max`` (Γ
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
            regrouped(torch.empty(context.signals["decay"]), self.heads, "decay")
        self.by_theta = options.strength == "theta"
        if self.by_theta:
            regrouped(torch.empty(context.signals["broadening"]), self.heads, "broadening")
        self.rule = options.rule
        # Between filters the weights' own transition, K x K, goes through the kernel as values do.
        widest = max(self.key_width, self.value_width) if options.filters else self.value_width
        self.kernel = context.kernels.bind(
            "fast_weights", sizes={"key": self.key_width, "value": widest}, needs=("gradient", "resets")
        )
        self.query = projection(width, self.heads * self.key_width, generator)
        self.key = projection(width, self.heads * self.key_width, generator)
        self.value = projection(width, self.heads * self.value_width, generator)
        channels = options.channels(width)
        self.convolution = self.resolvent = None
        if options.mixing == "resolvent":
            self.resolvent = ResolventMixing(options, context, channels)
        elif options.convolution:
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
            own = _linear(width, self.heads, generator) if options.rotation == "potential" else None
            self.rotation = Rotation(self.heads, self.key_width, options.rotation, own)
            if options.rotation == "spectral-shift":
                regrouped(torch.empty(context.signals["spectral_shift"]), self.heads, "spectral_shift")
        self.second = self._second_write(options, context) if options.writes == 2 else None
        self.norm = nn.RMSNorm(self.value_width, eps=options.norm_epsilon) if options.output_norm else None
        self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": self.value_width})
        self.gate = projection(width, self.heads * self.value_width, generator) if options.gate else None
        self.sigmoid = options.gate_activation == "sigmoid"
        # As many updates as there are blocks add up in the stream.
        self.output = projection(self.heads * self.value_width, width, generator, gain=(2 * context.depth) ** -0.5)
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

    def _second_write(self, options: FastWeightsOptions, context: Context) -> SecondWrite:
        width, generator = context.width, context.generator
        return SecondWrite(
            projection(width, self.heads * self.key_width, generator),
            projection(width, self.heads * self.value_width, generator),
            Rate(self.dynamics, generator),
            self.heads,
            options.convolution,
            options.taps,
            generator,
            context.kernels.bind,
        )

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence."""
        state = {} if state is None else state
        new_state = {}
        low = lowered(x)
        projected, gate = self.projected(low)
        if self.convolution is not None:
            (query, key, value), new_state["convolution"] = self.convolution(
                projected, self.heads, self.key_width, state.get("convolution"), tokens
            )
        elif self.resolvent is not None:
            (query, key, value), new_state["resolvent"] = self.resolvent(
                projected, low, signals, self.heads, self.key_width, state.get("resolvent"), tokens
            )
        else:
            sizes = (self.heads * self.key_width, self.heads * self.key_width, self.heads * self.value_width)
            query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in projected.split(sizes, dim=-1))
            query, key = unit_length(query), unit_length(key)
        if self.rotation is not None:
            shift = signals["spectral_shift"] if self.rotation.kind == "spectral-shift" else None
            if shift is not None:
                shift = regrouped(shift, self.heads, "spectral_shift")
            query, key, angle = self.rotation(query, key, x, shift, state.get("angle"), tokens)
            if angle is not None:
                new_state["angle"] = angle
        log_decay, rate = self.dynamics(low, signals["decay"] if self.use_signal else None)
        resonance = self.resonance(signals)
        if resonance is not None:
            rate = rate * resonance.to(rate.dtype)
        writes, of_writes = Writes(query, key, value, log_decay, rate), tokens
        if self.second is not None:
            written, carried = self.second(x, low, state.get("second"), tokens)
            if carried is not None:
                new_state["second"] = carried
            if resonance is not None:
                written = written._replace(rate=written.rate * resonance.to(written.rate.dtype))
            writes, of_writes = interleaved(writes, written, tokens)
        reading = by_period(
            self.kernel,
            list(self.filters.items()),
            writes,
            state.get("memory"),
            of_writes,
            rule=self.rule,
            period=self.period,
            read_before="memory_before" in self.publish,
        )
        new_state["memory"] = reading.state
        published = {} if reading.before is None else {"memory_before": reading.before}
        if "gate" in self.publish:
            published["gate"] = gate.sigmoid()
        read = self.gated(reading.output if self.second is None else reading.output[:, 1::2], gate)
        return LayerOutput(
            self.output(read.flatten(2).to(projected.dtype)),
            new_state,
            published,
            {},
            {**_measures(reading.state["weights"], -log_decay, rate, tokens.valid), **reading.metrics},
        )

    def gated(self, read: Tensor, gate: Tensor | None) -> Tensor:
        """What is read (B, N, H, M), normalised, times the gate of its pre-activation (B, N, H M)."""
        gate = None if gate is None else gate.unflatten(-1, (self.heads, -1))
        weight, epsilon = (None, 1e-6) if self.norm is None else (self.norm.weight, self.norm.eps)
        if gate is None or not self.sigmoid:
            return self.gated_norm(read, weight, gate, epsilon=epsilon)
        return self.gated_norm(read, weight, None, epsilon=epsilon) * gate.sigmoid()

    def resonance(self, signals: dict[str, Tensor]) -> Tensor | None:
        """(Γ + η) Im θ of each head (B, N, H), in [0, 1]; None where β is the token's own."""
        if not self.by_theta:
            return None
        found = signals["broadening"] * signals["theta"][..., 1]
        return regrouped(found, self.heads, "broadening").clamp(0.0, 1.0)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values side by side (B, N, H (2K + M)), and the gate's pre-activation (B, N, H M)."""
        # The gate by itself: joined to the others, their gradients would have to be copied together.
        return joined(x, (self.query, self.key, self.value)), None if self.gate is None else self.gate(x)


@torch.no_grad()
def _measures(weights: Tensor, decay: Tensor, rate: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    if valid is None:
        found = {"decay": decay.mean(), "rate": rate.mean(), "decay_min": decay.amin(), "decay_max": decay.amax()}
    else:
        there = valid[..., None]
        share = there.to(decay.dtype)
        share = (share / share.sum().clamp_min(1.0)).expand_as(decay) / decay.shape[-1]
        found = {
            "decay": (decay * share).sum(),
            "rate": (rate * share).sum(),
            "decay_min": torch.where(there, decay, torch.inf).amin(),
            "decay_max": torch.where(there, decay, 0.0).amax(),
        }
    return {**found, "energy": weights.square().sum((-1, -2)).mean()}


class Rate(nn.Module):
    """β of a second write, which starts as that of the first."""

    def __init__(self, first: Dynamics, generator: torch.Generator):
        super().__init__()
        self.most_rate = first.most_rate
        self.rate = _linear(first.rate.in_features, first.heads, generator)
        with torch.no_grad():
            self.rate.bias.copy_(first.rate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, D) → β (B, N, H), in fp32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            return self.most_rate * torch.sigmoid(self.rate(x.to(self.rate.weight.dtype)))


class Dynamics(nn.Module):
    """log-decay g = −(base_decay + softplus(w·x + c)) ≤ 0 and rate β = σ(u·x + b) in [0, 1], in fp32 at least.

    c is set so that softplus(c) is log-spaced over the heads between the two ``initial_decay`` bounds; β starts
    around ``initial_rate``, or ``first_rate`` and at most half of ``most_rate``. With ``own_decay`` false only the rate
    is learned here and Γ comes from a signal. With ``amplified`` g = −(base_decay + A softplus(w·x + c)): A starts even
    in (0, 16) and softplus(c) log-even in (0.001, 0.1), both learned (Mamba's Δ, as in Gated DeltaNet). β = most_rate
    σ(u·x + b).
    Source: mathematics §2, §3.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        generator: torch.Generator,
        *,
        initial_decay: tuple[float, float],
        base_decay: float,
        initial_rate: float | None,
        replaced: int | None,
        own_decay: bool,
        amplified: bool = False,
        most_rate: float = 1.0,
    ):
        super().__init__()
        self.most_rate = most_rate
        self.heads = heads
        self.base_decay = base_decay
        self.decay = _linear(width, heads, generator) if own_decay else None
        self.rate = _linear(width, heads, generator)
        slow, fast = torch.tensor(initial_decay, dtype=torch.float64)
        start = torch.logspace(slow.log10(), fast.log10(), heads, dtype=torch.float64)
        self.log_amplitude, learned = None, start
        if amplified and self.decay is not None:
            amplitude, learned = first_amplitude(heads, generator)
            self.log_amplitude = nn.Parameter(amplitude.log().to(self.decay.bias.dtype))
            start = amplitude * learned
        if initial_rate is None:
            # The Γ of a signal is not known here.
            rate = first_rate(start + base_decay, replaced if own_decay else None).clamp_max(most_rate / 2)
        else:
            rate = torch.full_like(start, initial_rate)
        with torch.no_grad():
            self.rate.bias.copy_((rate / most_rate).logit())
            if self.decay is not None:
                self.decay.bias.copy_(learned.expm1().log())

    def forward(self, x: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D), as matrix products take it; ``decay`` Γ ≥ 0 (B, N, heads of another layer) or None → g and β,
        each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            if self.decay is None:
                x = x.to(torch.promote_types(x.dtype, torch.float32))
                forgotten = -regrouped(decay, self.heads, "decay").to(x.dtype).clamp_min(0.0)  # what grows overflows
                return forgotten - self.base_decay, self.strength(self.rate(x))
            forgetting, writing = widened(x, (self.decay, self.rate)).chunk(2, dim=-1)
            # −softplus(z); torch 2.13 miscompiles the backward pass of softplus for the strides of a kernel's
            # gradient (aot_eager: "view size is not compatible").
            forgotten = F.logsigmoid(-forgetting)
            if self.log_amplitude is not None:
                forgotten = self.log_amplitude.exp() * forgotten
            kept = forgotten - self.base_decay if self.base_decay else forgotten
            return kept, self.strength(writing)

    def strength(self, writing: Tensor) -> Tensor:
        """β of its pre-activation."""
        rate = torch.sigmoid(writing)
        return rate if self.most_rate == 1.0 else self.most_rate * rate


def first_amplitude(heads: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and softplus(c), each (H,), as Mamba-2 and Gated DeltaNet draw them."""
    low, high = math.log(0.001), math.log(0.1)
    amplitude = torch.rand(heads, generator=generator, dtype=torch.float64).mul(16).clamp(min=1e-2)
    step = torch.rand(heads, generator=generator, dtype=torch.float64).mul(high - low).add(low).exp()
    return amplitude, step


def first_rate(decay: Tensor, replaced: int | None) -> Tensor:
    """β (H,) for first Γ (H,): 1/2, at most K Γ where a write replaces one of K = ``replaced`` directions.

    A replacing write with an unrelated key leaves 1 − β/K of an answer on average; β ≤ K Γ makes that at least 1 − Γ,
    so memory ends by its decay, which the heads spread over lengths, and not by the next K/β tokens.
    """
    half = torch.full_like(decay, 0.5)
    return half if replaced is None else half.minimum(replaced * decay)


def _linear(width: int, heads: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(width, heads)
    nn.init.normal_(linear.weight, std=WEIGHT_STD / width**0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
