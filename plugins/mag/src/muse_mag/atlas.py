"""The deep memory: what a token teaches it, how strongly, and how its answers enter the stream (Behrouz et al.,
arXiv:2505.23735; the rule of one token is arXiv:2501.00663).

Shapes: B batch, N tokens, D width, H heads, L levels, K width of a key's features, M of a value, E hidden width.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.model.context import Context
from muse_core.model.convolution import CausalConvolution
from muse_core.model.precision import lowered
from muse_core.model.projections import joined, projection
from muse_kernels import DeepMemoryState, unit_length
from muse_mag.atlas_options import AtlasOptions


class Gates(NamedTuple):
    """What a token asks of each level, (L, B, N, H) each."""

    rate: Tensor
    log_momentum: Tensor | None
    log_decay: Tensor


class Atlas(nn.Module):
    """update_t = P (gate(x_t) ⊙ norm(f(q_t; W))), with W as of the last complete chunk before t's.

    Queries, keys and values have length 1. State: of each level ``first``, ``second`` the fields of
    ``muse_kernels.DeepMemoryState``; with a convolution ``convolution`` (B, span − 1, H (2K + M)). Signal ``gate``
    (B, N, H M). Metrics: ``moved`` (‖W − W_start‖ over ‖W_start‖), ``rate``, ``momentum`` and ``decay`` (means of r, m
    and Γ). Chunks and shards lie on the grid of stream positions, so that right-padded rows are refused. Source:
    mathematics §3.
    """

    def __init__(self, options: AtlasOptions, context: Context):
        super().__init__()
        width, generator = context.width, context.generator
        self.options, self.publish = options, context.publish
        self.heads = options.heads
        self.base_width = options.key_size or width // options.heads
        self.key_width, self.value_width = options.key_width(width), options.value_width(width)
        hidden = options.hidden_width(width)
        matrices = 3 if options.memory == "gated" else 1
        self.kernel = context.kernels.bind(
            "deep_memory",
            sizes={"key": self.key_width, "hidden": hidden, "matrices": matrices},
            needs=("gradient", "resets", *(["orthogonalise"] * options.orthogonalise)),
        )
        self.query = projection(width, self.heads * self.base_width, generator)
        self.key = projection(width, self.heads * self.base_width, generator)
        self.value = projection(width, self.heads * self.value_width, generator)
        self.convolution = None
        if options.convolution:
            short = context.kernels.bind(
                "short_convolution",
                sizes={"key": self.base_width, "span": options.convolution},
                needs=("gradient", "resets"),
            )
            channels = self.heads * (2 * self.base_width + self.value_width)
            self.convolution = CausalConvolution(channels, options.convolution, generator, short)
        self.features = Monomials(self.base_width, options.degree) if options.degree > 1 else None
        shape = (options.levels, self.heads, matrices, self.key_width, hidden)
        self.dynamics = Dynamics(options, width, shape, generator)
        self.norm = nn.RMSNorm(self.value_width, eps=1e-6)
        self.gated_norm = context.kernels.bind("gated_norm", sizes={"features": self.value_width})
        self.gate = projection(width, self.heads * self.value_width, generator) if options.gate else None
        # As many updates as there are blocks add up in the stream.
        self.output = projection(self.heads * self.value_width, width, generator, gain=(2 * context.depth) ** -0.5)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised; ``state`` None means the start of a sequence. Raises ValueError for padded
        rows."""
        if tokens.valid is not None:
            raise ValueError(
                "deep memory is trained on one grid of chunks for all rows, which right-padded rows (tokens.valid) "
                "would leave; pass rows of equal length"
            )
        low = lowered(x)
        query, key, value, new_state = self.projected(low, state, tokens)
        answers = []
        gates = self.dynamics(x)
        for level in range(self.options.levels):
            name, gate = ("first", "second")[level], Gates(*(g if g is None else g[level] for g in gates))
            carried = None if state is None else DeepMemoryState(**state[name])
            answer, final = self.kernel(
                *(query, key, value, gate.rate, gate.log_momentum, gate.log_decay),
                self.dynamics.weights[level],
                initial=carried,
                resets=self.resets(level, x, tokens),
                chunk=self.chunk(level),
                offset=tokens.offset,
                window=self.options.window,
                orthogonalise=self.options.orthogonalise,
                recompute=self.options.recompute,
            )
            answers.append(answer)
            new_state[name] = final._asdict()
        read = answers[0] if len(answers) == 1 else answers[0] + answers[1]
        gate = None if self.gate is None else self.gate(low)
        published = {"gate": gate.sigmoid()} if gate is not None and "gate" in self.publish else {}
        read = self.gated_norm(read, self.norm.weight, None if gate is None else gate.view(read.shape))
        return LayerOutput(
            self.output(read.flatten(2).to(low.dtype)), new_state, published, {}, self.measures(new_state, gates)
        )

    def projected(self, x: Tensor, state: State, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, dict]:
        """Query and key (B, N, H, K) and value (B, N, H, M), each of length 1, and the convolution's state."""
        maps = joined(x, (self.query, self.key, self.value))
        kept = {}
        if self.convolution is not None:
            before = None if state is None else state["convolution"]
            (query, key, value), kept["convolution"] = self.convolution(
                maps, self.heads, self.base_width, before, tokens
            )
        else:
            sizes = (self.heads * self.base_width, self.heads * self.base_width, self.heads * self.value_width)
            query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in maps.split(sizes, dim=-1))
            query, key = unit_length(query), unit_length(key)
        if self.features is not None:
            query, key = self.features(query), self.features(key)
        return query, key, unit_length(value, self.gated_norm), kept

    def chunk(self, level: int) -> int:
        """Tokens that train this level together."""
        return self.options.chunk if level == 0 else self.options.global_length

    def resets(self, level: int, x: Tensor, tokens: Tokens) -> Tensor | None:
        """(B, N) bool: where this level starts afresh, at documents and, the first of two, at shards."""
        if self.options.levels == 1 or level == 1:
            return tokens.resets
        count = x.shape[1]
        if -tokens.offset % self.options.shard_length >= count:
            return tokens.resets
        at = torch.arange(tokens.offset, tokens.offset + count, device=x.device)
        starts = (at % self.options.shard_length == 0).expand(x.shape[:2])
        return starts if tokens.resets is None else starts | tokens.resets

    @torch.no_grad()
    def measures(self, state: dict, gates: Gates) -> dict[str, Tensor]:
        """The metrics of the class, scalars: ``moved`` of the first level after the last token, a root mean square over
        rows; the others means over levels, heads and tokens."""
        start = self.dynamics.weights[0]
        weights = state["first"]["weights"]
        moved = (weights - start).square().sum() / weights.shape[0]  # len() would fix the rows of a program of torch
        found = {"moved": (moved / start.square().sum()).sqrt(), "rate": gates.rate.mean()}
        if gates.log_momentum is not None:
            found["momentum"] = gates.log_momentum.exp().mean()
        return found | {"decay": -gates.log_decay.mean()}


class Dynamics(nn.Module):
    """Learned start (L, H, P, K, E) and gates of a token, per level and head, in fp32 at least.

    r = ``largest_step`` σ(u·x + b) / chunk; log m = log σ(w·x + c), whose sum over a chunk starts as log
    ``initial_momentum``; log a = −softplus(s·x + d), log-spaced over heads between ``initial_decay`` at the start. Of a
    gradient that is not orthogonalised r is also multiplied by (1 − m) / window: so often does the same gradient enter
    the weights. The start's scale makes |h| ≈ 1 for the hidden h of keys of length 1, and |f(x) − x| ≈ 1/2.
    """

    def __init__(self, options: AtlasOptions, width: int, shape: tuple[int, ...], generator: torch.Generator):
        super().__init__()
        self.levels, self.heads, matrices, key_width, hidden = shape
        self.shortened, self.window = not options.orthogonalise, options.window
        self.largest_step = options.largest_step
        self.chunks = (options.chunk, options.global_length)[: self.levels]
        start = torch.empty(shape).normal_(generator=generator)
        scale = torch.full((matrices, 1, 1), key_width**-0.5)
        if matrices > 1:
            scale[:2], scale[2] = (4 / hidden) ** 0.25, 0.5 * key_width**-0.5
        self.weights = nn.Parameter(start * scale)
        self.rate = self.gate(width, generator)
        self.momentum = self.gate(width, generator) if options.momentum else None
        self.decay = self.gate(width, generator)
        slow, fast = (math.log10(x) for x in options.initial_decay)
        with torch.no_grad():
            self.rate.bias.fill_(math.log(options.initial_step / (options.largest_step - options.initial_step)))
            first = torch.logspace(slow, fast, self.heads, dtype=torch.float64)
            self.decay.bias.copy_(first.expm1().log().repeat(self.levels))
            if self.momentum is not None:
                each = [options.initial_momentum ** (1 / chunk) for chunk in self.chunks]
                kept = torch.tensor(each, dtype=torch.float64).repeat_interleave(self.heads)
                self.momentum.bias.copy_(kept.logit())

    def gate(self, width: int, generator: torch.Generator) -> nn.Linear:
        linear = nn.Linear(width, self.levels * self.heads)
        nn.init.normal_(linear.weight, std=0.5 / width**0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        return linear

    def forward(self, x: Tensor) -> Gates:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            linears = [linear for linear in (self.rate, self.decay, self.momentum) if linear is not None]
            # One product, so that x is read once.
            weight, bias = (torch.cat([getattr(part, name) for part in linears]) for name in ("weight", "bias"))
            gates = F.linear(x, weight, bias).unflatten(-1, (len(linears), self.levels, self.heads))
            rate, decay, *momentum = gates.movedim((2, 3), (0, 1)).unbind(0)
            # By level: a tensor of the chunks' lengths would be copied from the host, which waits for the GPU.
            rate = torch.stack([x * (self.largest_step / chunk) for x, chunk in zip(rate.sigmoid(), self.chunks)])
            if self.shortened:
                rate = rate / self.window * momentum[0].neg().sigmoid() if momentum else rate / self.window
            return Gates(rate, F.logsigmoid(momentum[0]) if momentum else None, F.logsigmoid(-decay))


class Monomials(nn.Module):
    """All products of up to p entries of x, weighted so that φ(q)·φ(k) = Σ_{d ≤ p} (q·k)^d / p: of length 1 where x
    is."""

    def __init__(self, width: int, degree: int):
        super().__init__()
        for power in range(1, degree + 1):
            chosen = list(itertools.combinations_with_replacement(range(width), power))
            weight = [math.factorial(power) / math.prod(map(math.factorial, Counter(c).values())) for c in chosen]
            self.register_buffer(f"places{power}", torch.tensor(chosen), persistent=False)
            root = torch.tensor(weight, dtype=torch.float64).div(degree).sqrt()
            self.register_buffer(f"weight{power}", root, persistent=False)
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, H, width) → (B, N, H, K)."""
        parts = []
        for power in range(1, self.degree + 1):
            places, weight = getattr(self, f"places{power}"), getattr(self, f"weight{power}")
            parts.append(x[..., places].prod(-1) * weight.to(x.dtype))
        return torch.cat(parts, -1)
