"""The layer of experts.

Letters: B batch rows, N tokens, D width, E experts, F hidden units of one, K slots of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import LayerOutput, Routing, State, Tokens
from muse_core.model.context import Context
from muse_core.model.flops import flops_per_token
from muse_core.model.precision import product_dtype
from muse_scattering_router.dispatch import sort, to_rows, to_tokens, within_capacity
from muse_scattering_router.load import weigh
from muse_scattering_router.options import ExpertsOptions
from muse_scattering_router.products import HAS_TRITON, grouped, serves


class Experts(nn.Module):
    """update = Σ_slots weight · W_e act(V_e x) over the experts e that the router chose, swiglu with a gate; only those
    are computed. Each token by itself; the state is empty. Padding goes to no expert.

    A matrix of its own for every expert, so that initialisers and Muon see matrices.
    """

    def __init__(self, options: ExpertsOptions, context: Context):
        super().__init__()
        self.options = options
        width, count = context.width, options.experts
        hidden = max(8, 8 * round(options.multiple * width / 8))
        self.router = context.build(options.router, name=f"{context.name}.router", experts=count)
        inputs = hidden * (2 if options.activation == "swiglu" else 1)
        self.input = _matrices(count, (inputs, width), width**-0.5, context.generator)
        self.output = _matrices(count, (width, hidden), (2 * context.depth * hidden) ** -0.5, context.generator)

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised."""
        routing = self.router(x, signals, tokens)
        wanted = routing.expert
        if tokens.valid is not None:
            wanted = wanted.masked_fill(~tokens.valid[..., None], -1)
        taken = self.within_capacity(wanted)
        if taken is wanted and self.fuses(x, routing):
            update, losses, metrics = self.compute_fused(x, routing, wanted, tokens)
        else:
            every_slot = getattr(self.router, "fills_slots", False) and tokens.valid is None and taken is wanted
            weight = routing.weight if every_slot else routing.weight.masked_fill(taken < 0, 0.0)
            update = self.compute(x, taken, weight, every_slot=every_slot)
            scales = {"balance": self.options.balance, "z_loss": self.options.z_loss}
            losses, metrics = weigh(wanted, taken, routing, tokens, **scales)
        metrics |= {f"router/{name}": value for name, value in routing.metrics.items()}
        return LayerOutput(update, {}, {}, dict(routing.losses) | losses, metrics)

    def within_capacity(self, expert: Tensor) -> Tensor:
        """``expert`` (B, N, K) without the choices that exceed the capacity."""
        if self.options.capacity is None or not self.training:
            return expert
        most = math.ceil(self.options.capacity * expert.shape[1] * expert.shape[2] / self.options.experts)
        return within_capacity(expert, self.options.experts, most)

    def compute(self, x: Tensor, expert: Tensor, weight: Tensor, *, every_slot: bool) -> Tensor:
        """x (B, N, D), ``expert`` and ``weight`` (B, N, K) → (B, N, D); ``every_slot``: no slot is unused."""
        dtype, slots = product_dtype(x), expert.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            order = sort(expert.flatten(0, 1), self.options.experts, every_slot=every_slot)
            rows = to_rows(x.to(dtype).flatten(0, 1), order, slots)
            # Weighed here and not at the end: the sum over slots is then the transpose of the copy to rows.
            hidden = self.activate(
                grouped(rows, list(self.input), order.ends), weight.flatten().gather(0, order.slot).to(dtype)
            )
            rows = grouped(hidden, list(self.output), order.ends)
            return to_tokens(rows, order, slots).view(x.shape)

    def activate(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Hidden units of rows (R, …) times the rows' weights (R,)."""
        if self.options.activation == "swiglu":
            hidden, gate = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.gelu(hidden) if self.options.activation == "gelu" else F.relu(hidden).square()
        return hidden * weight[:, None]

    def fuses(self, x: Tensor, routing: Routing) -> bool:
        """Whether the Triton kernels of ``fused`` serve."""
        if self.options.activation != "swiglu" or not HAS_TRITON or x.numel() == 0:
            return False
        from muse_scattering_router.fused_routing import block_of

        matrices = (self.input[0], self.output[0])
        return (
            all(serves(x.device, product_dtype(x), matrix) for matrix in matrices)
            and routing.logits.dtype != torch.float64
            and block_of(routing.expert.shape[-1], self.options.experts) > 0
        )

    def compute_fused(
        self, x: Tensor, routing: Routing, expert: Tensor, tokens: Tokens
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Update, losses and metrics; ``expert`` (B, N, K) is −1 in padding."""
        from muse_scattering_router.fused import swiglu_experts
        from muse_scattering_router.fused_routing import Places
        from muse_scattering_router.fused_routing import weigh as weigh_fused

        dtype = product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            weighed = weigh_fused(
                routing.logits.flatten(0, 1), expert.flatten(0, 1), tokens.valid,
                balance=self.options.balance, z_loss=self.options.z_loss,
            )
            update = swiglu_experts(
                x.flatten(0, 1), routing.weight.flatten(0, 1), Places(weighed.row, weighed.ends),
                list(self.input), list(self.output), dtype,
            )
        names = ["entropy", "load_entropy", "busiest_max", "slots", "dropped"]
        names += [f"load_{index}" for index in range(self.options.experts)]
        metrics = dict(zip(names, weighed.statistics.unbind(), strict=True))
        return update.view(x.shape), {"balance": weighed.balance, "z": weighed.z}, metrics

    def flops_per_token(self) -> int:
        """Of the experts that a token is expected to use, and the router."""
        slots = getattr(self.router, "expected_slots", self.options.experts)
        return flops_per_token(self.router) + round(2 * slots * (self.input[0].numel() + self.output[0].numel()))


def _matrices(count: int, shape: tuple[int, int], std: float, generator: torch.Generator) -> nn.ParameterList:
    return nn.ParameterList(torch.randn(shape, generator=generator) * std for _ in range(count))
