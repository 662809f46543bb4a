"""Fast weights, one token at a time in float64: the definition that every other backend is compared with.

Shapes: B batch, N tokens, H heads, K key width, M value width.
"""

import torch
from torch import Tensor

from ..arguments import Call, Layout, checked


@checked
def fast_weights(call: Call, layout: Layout) -> tuple[Tensor, Tensor]:
    """Sequential fast weights; arguments, results and errors as `muse_kernels.fast_weights`.

    Computes in float64 whatever the inputs and casts the results back. Cost N steps of K x M each; `chunk` is ignored.
    Gradients are autograd's through the recursion. Source: mathematics §3.
    """
    query, key, value, log_decay, rate, rule, initial, resets, read, _ = call
    query, key, value, log_decay, rate = (x.to(torch.float64) for x in (query, key, value, log_decay, rate))
    weights = query.new_zeros(layout.state_shape) if initial is None else initial.to(torch.float64)

    outputs = []
    for t in range(layout.tokens):
        if resets is not None:
            weights = weights.masked_fill(resets[:, t, None, None, None], 0.0)
        if read == "before":
            outputs.append(_read(weights, query[:, t]))
        weights = log_decay[:, t].exp()[..., None, None] * weights
        written = value[:, t]
        if rule == "delta":
            written = written - _read(weights, key[:, t])
        weights = weights + torch.einsum("bh,bhk,bhm->bhkm", rate[:, t], key[:, t], written)
        if read == "after":
            outputs.append(_read(weights, query[:, t]))
    return torch.stack(outputs, dim=1).to(layout.output_dtype), weights.to(layout.state_dtype)


def _read(weights: Tensor, query: Tensor) -> Tensor:
    return torch.einsum("bhkm,bhk->bhm", weights, query)
