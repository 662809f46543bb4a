"""Fast weights by fla-core's kernels, with the signature of ``muse_kernels.fast_weights`` without ``backend``."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_kernels.arguments import Call, Layout, checked


@checked
def fast_weights(call: Call, layout: Layout) -> tuple[Tensor, Tensor]:
    """Arguments, results and errors as ``muse_kernels.fast_weights``; fla-core is imported here, at the first call.

    ``chunk`` is fla-core's own choice. ValueError for resets, which the backend refuses.
    """
    query, key, value, log_decay, rate, rule, initial, resets, read, _ = call
    if resets is not None:
        raise ValueError("fast_weights: the backend fla serves no resets; use triton or torch")
    state = query.new_zeros(layout.state_shape, dtype=torch.float32) if initial is None else initial.float()
    queries = query if read == "after" else torch.cat((query[:, 1:], torch.zeros_like(query[:, :1])), dim=1)
    output, final = RULES[rule](queries, key, value, log_decay.float(), rate.float(), state)
    if read == "before":
        first = torch.einsum("bhk,bhkm->bhm", query[:, 0].float(), state).to(output.dtype)
        output = torch.cat((first[:, None], output[:, :-1]), dim=1)
    return output, final


def hebbian(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, rate: Tensor, initial: Tensor):
    """A write of rate b is one of rate 1 with b v."""
    from fla.ops.simple_gla import chunk_simple_gla

    value = (value * rate[..., None]).to(value.dtype)
    return chunk_simple_gla(
        query, key, value, g=log_decay, scale=1.0, initial_state=initial, output_final_state=True
    )


def delta(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, rate: Tensor, initial: Tensor):
    """fla-core's gated delta rule is ours."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(
        query, key, value, g=log_decay, beta=rate, scale=1.0, initial_state=initial, output_final_state=True
    )


RULES = {"hebbian": hebbian, "delta": delta}
