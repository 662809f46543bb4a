"""The scattering router.

Letters: B batch rows, N tokens, H heads of the resolvent, C channels, Q bins, E experts, K slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Routing, Tokens
from muse_core.model.context import Context
from muse_core.model.routing import best
from muse_scattering_router.moving import Quantiles, Standardised
from muse_scattering_router.options import ScatteringOptions
from muse_scattering_router.products import HAS_TRITON

PHASE, LOG_THETA, MEAN_LOG_THETA = (0.0, 0.25), (-0.3, 0.19), (-0.34, 0.09)
"""Mean and deviation of δ, log |θ| and its mean over heads with which a resolvent of default options starts on the
default corpus; the averages begin there and follow from the first step on."""


class Read(NamedTuple):
    """What the router reads of a batch."""

    entries: Tensor
    """(B, N, I): what the logits are linear in."""
    modulus: Tensor
    """(B, N, 1): log |θ|, its mean over channels."""
    metrics: dict[str, Tensor]
    """What the moving averages absorb."""


class Scattering(nn.Module):
    """Logits from the phase δ and log |θ| of the resolvent before, averaged over C groups of neighbouring heads.

    linear: a matrix on standardised features, with rows of equal length. bins: Σ over the 2 C features of a table's
    entry for the feature's quantile bin; bins hold equal shares of tokens and each table has zero mean over its bins at
    the start. Either way all experts start with the same mean logit, and none dead. A token whose mean log |θ| exceeds
    its running quantile is at resonance and goes to more experts. Quantiles, means and deviations are moving averages
    over optimiser steps and constants within one; evaluation leaves them alone. Source: mathematics §5.
    """

    def __init__(self, options: ScatteringOptions, context: Context):
        super().__init__()
        assert context.experts is not None
        problem = options.refuse(context.experts)
        if problem:
            raise ValueError(problem)
        self.options = options
        self.heads = _heads(context.signals)
        if options.channels > self.heads:
            raise ValueError(f"channels = {options.channels} exceeds the {self.heads} heads of the resolvent before it")
        self.slots = max(options.top_k, options.at_resonance)
        self.fills_slots = options.top_k == options.at_resonance
        more = options.at_resonance - options.top_k
        self.expected_slots = options.top_k + (1 - options.resonance) * more
        features = 2 * options.channels
        expected = [PHASE] * options.channels + [LOG_THETA] * options.channels
        if options.map == "bins":
            inputs = features * options.bins
            levels = tuple(index / options.bins for index in range(1, options.bins))
            self.scale: nn.Module = Quantiles(expected, levels, options.decay)
        else:
            inputs = features
            self.scale = Standardised(expected, options.decay)
        self.resonance = None
        if options.resonance < 1 and not self.fills_slots:
            self.resonance = Quantiles([MEAN_LOG_THETA], (options.resonance,), options.decay)
        self.score = nn.Linear(inputs, context.experts, bias=False)
        weight = torch.randn(self.score.weight.shape, generator=context.generator)
        if options.map == "bins":
            tables = weight.unflatten(1, (features, options.bins)) * features**-0.5
            weight = (tables - tables.mean(-1, keepdim=True)).flatten(1)
        else:
            weight = _spread(weight, options.channels)
        with torch.no_grad():
            self.score.weight.copy_(weight)

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing:
        """Reads ``phase`` (B, N, H) and ``theta`` (B, N, H, 2); x gives the dtype only."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            read = self.read_fused if self.fuses(signals, dtype) else self.read
            entries, modulus, metrics = read(signals, tokens, dtype)
            logits = self.score(entries)
        used = None
        if self.resonance is not None:
            resonant = self.resonance(modulus)[..., 0] > 0
            used = torch.where(resonant, self.options.at_resonance, self.options.top_k)
            metrics |= self.resonant(resonant, modulus, tokens)
        elif not self.fills_slots:
            used = torch.full(x.shape[:2], self.options.top_k, device=x.device)
        expert, weight = best(logits, self.slots, used)
        return Routing(expert, weight, logits, {}, metrics)

    def read(self, signals: Mapping[str, Tensor], tokens: Tokens, dtype: torch.dtype) -> Read:
        """What the logits are linear in, log |θ|, and in training what the moving averages absorb."""
        found = self.features(signals, dtype)
        scaled = self.scale(found)
        if self.options.map == "bins":
            scaled = F.one_hot(scaled, self.options.bins).flatten(2).to(dtype)
        measured = self.scale.measured(found, tokens.valid) if self.training else {}
        return Read(scaled, found[..., self.options.channels :].mean(-1, keepdim=True), measured)

    def read_fused(self, signals: Mapping[str, Tensor], tokens: Tokens, dtype: torch.dtype) -> Read:
        """``read`` by a Triton kernel."""
        from muse_scattering_router.fused_features import features

        phase, theta = signals["phase"], signals["theta"]
        found = features(phase.flatten(0, 1), theta.flatten(0, 1), self.scale.values, tokens.valid)
        measured = self.scale.taken(found.sums, _count(phase, tokens)) if self.training else {}
        entries, modulus = (part.view(*phase.shape[:2], -1) for part in found[:2])
        return Read(entries, modulus, measured)

    def fuses(self, signals: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
        """Whether ``read_fused`` serves."""
        phase = signals["phase"]
        wanted = phase.device.type == "cuda" and dtype == torch.float32 and self.options.map == "linear"
        return wanted and phase.numel() > 0 and HAS_TRITON

    def features(self, signals: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """(B, N, 2 C): mean δ, then mean log |θ| of each channel."""
        phase, theta = signals["phase"].to(dtype), signals["theta"].to(dtype)
        modulus = 0.5 * theta.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny).log()
        groups = [part.mean(-1) for x in (phase, modulus) for part in x.tensor_split(self.options.channels, dim=-1)]
        return torch.stack(groups, dim=-1)

    @torch.no_grad()
    def resonant(self, resonant: Tensor, modulus: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        """``resonance``, the share of tokens at resonance; in training also the quantile that its average absorbs."""
        valid = torch.ones_like(resonant) if tokens.valid is None else tokens.valid
        measured = {"resonance": (resonant & valid).sum() / valid.sum().clamp(min=1)}
        if self.training:
            assert self.resonance is not None
            seen = self.resonance.measured(modulus, tokens.valid)
            measured |= {f"modulus_{name}": value for name, value in seen.items()}
        return measured

    def update_statistics(self, metrics: Mapping[str, float], progress: float) -> None:
        """Move the averages by what the accepted step has measured."""
        self.scale.follow(metrics)
        if self.resonance is not None:
            prefix = "modulus_"
            own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
            self.resonance.follow(own)


def _count(x: Tensor, tokens: Tokens) -> Tensor | int:
    """Valid tokens of x (B, N, …)."""
    return x.shape[0] * x.shape[1] if tokens.valid is None else tokens.valid.sum().clamp(min=1)


def _heads(signals: Mapping[str, tuple[int, ...]]) -> int:
    """H of the signals. Raises ValueError for shapes that are not a resolvent's."""
    phase, theta = signals.get("phase", ()), signals.get("theta", ())
    if len(phase) != 1 or theta != (*phase, 2):
        raise ValueError(
            f"the signals phase {list(phase)} and theta {list(theta)} before it are not those of one resolvent, "
            "[H] and [H, 2]"
        )
    return phase[0]


def _spread(rows: Tensor, channels: int) -> Tensor:
    """Rows (E, 2 C) far apart and of equal length: an expert with a short row would rarely be anyone's best. From three
    channels on, differences between channels only, so that a potential that shifts all of them alike favours nobody."""
    spread = torch.cat([torch.linalg.qr(part.T).Q.T for part in rows.split(rows.shape[1])])
    if channels > 2:
        parts = spread.unflatten(1, (2, channels))
        spread = (parts - parts.mean(-1, keepdim=True)).flatten(1)
    return F.normalize(spread, dim=1)
