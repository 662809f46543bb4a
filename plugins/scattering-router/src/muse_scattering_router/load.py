"""Losses that keep a router balanced, and what is measured of its choices.

Letters: B batch rows, N tokens, E experts, K slots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from muse_core.contracts import Routing, Tokens


def loads(expert: Tensor, experts: int) -> Tensor:
    """(E,): how often each expert is chosen in ``expert`` (B, N, K), unused slots −1."""
    return (expert[..., None] == torch.arange(experts, device=expert.device)).sum((0, 1, 2))


def weigh(
    wanted: Tensor, taken: Tensor, routing: Routing, tokens: Tokens, *, balance: float, z_loss: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and metrics of a routing; ``wanted`` (B, N, K) is its choice without padding, ``taken`` also without
    what exceeded the capacity.

    Losses: ``balance``, valid tokens × E Σ_e f_e P_e (Fedus et al. 2022), f the share of choices and P the mean
    probability, 1 a token where all experts are equally busy; ``z``, Σ over valid tokens of log² Σ_e exp(logit)
    (Zoph et al. 2022).
    Metrics: ``entropy`` of a token's probabilities and ``load_entropy`` of the loads, both 1 when uniform;
    ``load_<e>``, the expert's share of the choices; ``busiest_max``, the largest; ``slots``, choices of a token;
    ``dropped``, the share of choices beyond the capacity.
    """
    logits, experts = routing.logits, routing.logits.shape[-1]
    partition, probability = logits.logsumexp(-1), logits.softmax(-1)
    if tokens.valid is None:
        count = torch.full((), logits.shape[0] * logits.shape[1], dtype=logits.dtype, device=logits.device)
        mean = probability.mean((0, 1))
        squared = partition.square().sum()
    else:
        valid = tokens.valid.to(logits.dtype)
        count = valid.sum()
        mean = (probability * valid[..., None]).sum((0, 1)) / count.clamp(min=1)
        squared = (partition.square() * valid).sum()
    number = loads(wanted, experts).to(logits.dtype)
    chosen = number.sum().clamp(min=1)
    load = number / chosen
    losses = {"balance": balance * experts * count * (load * mean).sum(), "z": z_loss * squared}
    with torch.no_grad():
        full = math.log(experts) if experts > 1 else 1.0
        entropy = partition - (probability * logits).sum(-1)
        entropy = entropy.mean() if tokens.valid is None else (entropy * tokens.valid).sum() / count.clamp(min=1)
        metrics = {
            "entropy": entropy / full,
            "load_entropy": -torch.xlogy(load, load).sum() / full,
            "busiest_max": load.max(),
            "slots": chosen / count.clamp(min=1),
            "dropped": torch.zeros_like(chosen) if taken is wanted else 1 - (taken >= 0).sum() / chosen,
        } | {f"load_{index}": share for index, share in enumerate(load.unbind())}
    return losses, {name: value.detach() for name, value in metrics.items()}
